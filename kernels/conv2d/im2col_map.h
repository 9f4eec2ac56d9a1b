// The one index map of the im2col family. Along each axis, with `place` counting output positions and `tap`
// counting the filter taps in use,
//
//   source = place*step + tap*offset_step + offset      output = first_place + place*place_step
//
// fprop and wgrad: source h, place p, tap r:  h = p*stride - pad + r*dilation, every p and every r.
// dgrad: source p, output h. Of p*stride = h + pad - r*dilation only the taps with an integer p matter, so
// the h of one residue class (h mod stride) share a set of taps, an arithmetic progression, and within the
// class p steps by 1. Each class is a dense convolution; no zeros are ever inserted.
#pragma once
#include "gemm/gemm.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

struct Axis {
  int64_t places, step, first_place, place_step;  // output positions
  int64_t taps, first_tap, tap_step;              // filter taps: first_tap + tap*tap_step
  int64_t offset, offset_step;                    // source = place*step + tap*offset_step + offset
  int64_t extent;                                 // of the source
};

inline Axis fprop_axis(int64_t extent, int64_t places, int64_t taps, int64_t stride, int64_t pad,
                       int64_t dilation) {
  return {places, stride, 0, 1, taps, 0, 1, -pad, dilation, extent};
}

inline int64_t greatest_common_divisor(int64_t a, int64_t b) {
  while (b != 0) {
    const int64_t rest = a % b;
    a = b, b = rest;
  }
  return a;
}

// Class `first_place` of [0, extent_out) by stride; extent_in is the extent of dy.
inline Axis dgrad_axis(int64_t first_place, int64_t extent_out, int64_t extent_in, int64_t taps, int64_t stride,
                       int64_t pad, int64_t dilation) {
  const int64_t tap_step = stride / greatest_common_divisor(stride, dilation);
  int64_t first = 0;
  while (first < taps && first < tap_step && (first_place + pad - first * dilation) % stride != 0) ++first;
  const bool none = first >= taps || first >= tap_step;
  const int64_t count = none ? 0 : ceil_div(taps - first, tap_step);
  const int64_t places = ceil_div(extent_out - first_place, stride);
  return {places,
          1,
          first_place,
          stride,
          count,
          first,
          tap_step,
          none ? 0 : (first_place + pad - first * dilation) / stride,
          -(tap_step * dilation / stride),
          extent_in};
}

// One dense gather: out[n, m, place] = sum over channel, tap of weights[m, channel, tap] * source[n, channel,
// ...]. fprop: out y (m = k), source x. dgrad: out dx (m = c), source dy, one Gather per residue class. Strides
// are in elements, which are of type E; pointers are at the group's first channel.
template <class E>
struct Gather {
  Axis h, w;
  int64_t images, channels, rows;  // rows: output channels m of the group
  const E* source;
  int64_t source_image, source_channel;  // nchw: rows of w elements; nhwc: channel stride 1
  int64_t source_pixel;                  // nchw: 1, nhwc: all channels of the source
  const E* weights;
  int64_t weights_m, weights_channel, weights_r, weights_s, filter_taps;  // filter_taps: r*s of the whole filter
  const E* bias;                                                          // [m] or null
  E* out;
  int64_t out_image, out_channel, out_row, out_pixel;

  int64_t plane() const { return h.places * w.places; }
  int64_t pixels() const { return images * plane(); }
  int64_t taps() const { return h.taps * w.taps; }
  int64_t gemm_k() const { return channels * taps(); }
  bool dense_out() const { return h.place_step == 1 && w.place_step == 1; }
};

// A walk over the flattened output positions (image, i, j).
struct Place {
  int64_t image, i, j;
  Place(int64_t index, const Axis& h, const Axis& w) {
    j = index % w.places;
    i = index / w.places % h.places;
    image = index / w.places / h.places;
  }
  // Forward by `count` positions that do not pass the end of the row.
  void advance(int64_t count, const Axis& h, const Axis& w) {
    j += count;
    if (j < w.places) return;
    j = 0;
    if (++i < h.places) return;
    i = 0;
    ++image;
  }
};

inline bool inside(int64_t index, int64_t extent) { return uint64_t(index) < uint64_t(extent); }

// A 1x1 stride 1 unpadded nchw map reads whole planes in order: one row of H*W elements.
inline void flatten_plain(Axis& h, Axis& w) {
  for (const Axis* axis : {&h, &w})
    if (axis->taps != 1 || axis->step != 1 || axis->offset != 0 || axis->place_step != 1 ||
        axis->places != axis->extent)
      return;
  w.places = w.extent = h.places * w.places;
  h.places = h.extent = 1;
}

// ---- Work units --------------------------------------------------------------------------------------

// How a product is cut for parallel_for: from its sizes alone, never from the number of threads.
struct Units {
  int64_t m, n, chunks;
  int64_t count() const { return m * n * chunks; }
};

struct UnitConfig {
  static constexpr double kFlops = 2e6;    // of one unit at least: 20 us, against 1 us to hand out a unit
  static constexpr double kMaxUnits = 16;  // one for each of 16 threads: more units repeat more packing
};

// Units wanted of a product that is done `copies` times over (groups, residue classes).
inline int64_t units_wanted(int64_t gemm_m, int64_t gemm_n, int64_t gemm_k, int64_t copies) {
  const double flops = 2.0 * double(gemm_m) * double(gemm_n) * double(gemm_k) * double(copies);
  const double units = flops / UnitConfig::kFlops;
  return ceil_div(int64_t(units > UnitConfig::kMaxUnits ? UnitConfig::kMaxUnits : units), copies);
}

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
