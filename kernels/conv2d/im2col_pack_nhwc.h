// Packing for nhwc: cols[(n, i, j), (i_tap, j_tap, channel)], where channels are contiguous.
//
// A tap of a pixel is a run of `channels` elements of a source row. With one group and neighbouring taps one
// pixel apart, a whole row of taps is one run (a 7x7 filter on 3 channels: runs of 21, not of 3). A row of the
// source is taken as w*c elements, and what a run has outside of it is zero.
#pragma once
#include "conv2d/im2col_map.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

// The taps of a map as runs: run t is taps (i_tap, j_tap), element `channel` of it at (w*pixel + channel).
struct Runs {
  int64_t length, per_row;  // elements of a run, runs per i_tap
  int64_t row_elements;     // of a source row
  int64_t pixel;            // elements from one source pixel to the next

  Runs(const Axis& w, int64_t channels, int64_t source_pixel) {
    const bool merged = channels == source_pixel && w.offset_step == 1;
    length = merged ? w.taps * channels : channels;
    per_row = merged ? 1 : w.taps;
    row_elements = w.extent * source_pixel;
    pixel = source_pixel;
  }
};

// The A sliver of fprop and dgrad: `rows` pixels by kc (i_tap, j_tap, channel), row form.
template <class E>
struct PackColsA {
  using T = Accumulator<E>;
  static constexpr bool k_major = false;
  const Gather<E>& map;
  Runs runs;
  int64_t first_channel;  // of the group, in a pixel

  PackColsA(const Gather<E>& gather, int64_t group_channel)
      : map(gather), runs(gather.w, gather.channels, gather.source_pixel), first_channel(group_channel) {}

  const T* operator()(int64_t m0, int rows, int64_t k0, int64_t kc, T* sliver) const {
    const Axis &h = map.h, &w = map.w;
    if (kc == 0) return sliver;
    const int64_t run0 = k0 / runs.length, within0 = k0 % runs.length;
    const int64_t i_tap0 = run0 / runs.per_row, j_tap0 = run0 % runs.per_row;
    Place place(m0, h, w);
    for (int row = 0; row < rows; ++row, place.advance(1, h, w)) {
      const E* image = map.source + place.image * map.source_image;
      const int64_t h0 = place.i * h.step + h.offset, w0 = place.j * w.step + w.offset;
      T* to = sliver + row * GemmConfig<T>::kRowStride;
      int64_t i_tap = i_tap0, j_tap = j_tap0, within = within0;
      for (int64_t k = 0; k < kc;) {
        const int64_t count = at_most(runs.length - within, kc - k), from = h0 + i_tap * h.offset_step;
        const bool exists = inside(from, h.extent);
        const E* source = image + from * runs.row_elements;
        const int64_t element = (w0 + j_tap * w.offset_step) * runs.pixel + first_channel + within;
        for (int64_t i = 0; i < count; i += kLanes<T>)
          store(to + k + i, exists ? load_between(source, element + i, runs.row_elements) : Vec<T>{});
        k += count;
        within = 0;
        if (++j_tap == runs.per_row) j_tap = 0, ++i_tap;
      }
    }
    return sliver;
  }
};

// The filter as all its B panels, packed once: [(i_tap, j_tap, channel)][m], kc block by kc block.
template <class E>
struct PackedWeights {
  using T = Accumulator<E>;
  const Gather<E>& map;
  T* panels;

  static int64_t size(int64_t rows, int64_t gemm_k) { return panel_offset<T>(gemm_k, rows); }
  const T* operator()(int64_t n0, int64_t, int64_t k0, int64_t kc, T*) const {
    return panels + panel_offset<T>(k0, map.rows) + n0 / GemmConfig<T>::kNr * sliver_stride<T>(kc);
  }

  // One kc block of one sliver of columns.
  void pack(int64_t k0, int64_t sliver) const {
    using Config = GemmConfig<T>;
    const Axis &h = map.h, &w = map.w;
    const int64_t kc = at_most(Config::kKc, map.gemm_k() - k0), m0 = sliver * Config::kNr;
    const int64_t columns = at_most(Config::kNr, map.rows - m0);
    const int width = sliver_width<T>(columns);
    T* to = panels + panel_offset<T>(k0, map.rows) + sliver * sliver_stride<T>(kc);
    const E* from = map.weights + m0 * map.weights_m;
    if (map.weights_channel == 1 && map.weights_m != 1) {  // fprop: w[k][r][s][c], a filter is contiguous along k
      pack_transposed(to, width, from + k0, map.weights_m, columns, kc);
      return;
    }
    // dgrad: neighbours in m are contiguous, a tap is anywhere
    for (int64_t k = 0; k < kc; ++k) {
      const int64_t tap = (k0 + k) / map.channels, channel = (k0 + k) % map.channels;
      const int64_t r = h.first_tap + tap / w.taps * h.tap_step, s = w.first_tap + tap % w.taps * w.tap_step;
      copy_run(to + k * width, from + channel * map.weights_channel + r * map.weights_r + s * map.weights_s,
               columns);
    }
  }
};

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
