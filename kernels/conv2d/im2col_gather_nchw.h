// fprop and dgrad, nchw:  out[m, pixels] = weights[m, (channel, tap)] * cols[(channel, tap), pixels]
//
// gemm_m = output channels of a group, gemm_n = output pixels of all images (flattened, so that 14x14 and 7x7
// images fill whole vectors), gemm_k = channels * taps. A unit is a block of pixels by a block of channels; it
// packs its cols itself, one kc x nc block at a time. An element's sum runs over gemm_k in one order wherever
// its pixel falls, so a sample's bits do not depend on the batch.
#pragma once
#include "conv2d/im2col_pack_nchw.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

template <class E>
struct StorePixels {
  using T = Accumulator<E>;
  static constexpr bool rounds = sizeof(E) == 2;
  const Gather<E>& map;

  Tile<E> tile(int64_t m0, int64_t n0, int, int64_t columns) const {
    const int64_t plane = map.plane(), image = n0 / plane, pixel = n0 % plane;
    if (!map.dense_out() || pixel + columns > plane) return {};
    return {map.out + image * map.out_image + m0 * map.out_channel + pixel, map.out_channel, columns,
            map.bias ? map.bias + m0 : nullptr, nullptr};
  }

  // A tile that crosses from one image to the next, ends within a vector, or belongs to a residue class.
  void scatter(const T* sums, int64_t stride, int64_t m0, int64_t n0, int rows, int64_t columns,
               bool first) const {
    const Axis &h = map.h, &w = map.w;
    Place place(n0, h, w);
    for (int64_t done = 0; done < columns;) {
      const int64_t in_image = map.plane() - (place.i * w.places + place.j);
      const int64_t run = at_most(columns - done, map.dense_out() ? in_image : w.places - place.j);
      E* to = map.out + place.image * map.out_image + m0 * map.out_channel +
              (h.first_place + place.i * h.place_step) * map.out_row +
              (w.first_place + place.j * w.place_step) * map.out_pixel;
      for (int i = 0; i < rows; ++i, to += map.out_channel) {
        const T* from = sums + i * stride + done;
        const T start = map.bias && first ? widen(map.bias[m0 + i]) : T(0);
        w.place_step == 1 ? put_row(to, from, run, start, first) : put_strided(to, from, run, start, first);
      }
      done += run;
      if (map.dense_out())
        place = Place(n0 + done, h, w);
      else
        place.advance(run, h, w);
    }
  }

  void put_row(E* to, const T* from, int64_t count, T start, bool first) const {
    for (int64_t i = 0; i < count; i += kLanes<T>) {
      const int lanes = int(at_most(kLanes<T>, count - i));
      Vec<T> value = load_partial(from + i, lanes);
      if (!first)
        value += load_partial(to + i, lanes);
      else if (map.bias)
        value += broadcast(start);
      store_partial<E>(to + i, value, lanes);
    }
  }
  void put_strided(E* to, const T* from, int64_t count, T start, bool first) const {
    const int64_t step = map.w.place_step * map.out_pixel;
    for (int64_t i = 0; i < count; ++i)
      to[i * step] = narrow<E>(!first ? widen(to[i * step]) + from[i] : map.bias ? from[i] + start : from[i]);
  }
};

template <class T>
inline Units gather_units_nchw(int64_t gemm_m, int64_t gemm_n, int64_t gemm_k, int64_t copies) {
  using Config = GemmConfig<T>;
  const int64_t wanted = units_wanted(gemm_m, gemm_n, gemm_k, copies);
  // Pixels first, down to 8 slivers (an A sliver is packed once for so many tiles); then channels, down to 8
  // panels (a column of cols is packed once for so many rows).
  const int64_t n_blocks =
      at_least(ceil_div(gemm_n, Config::kNc), at_most(wanted, ceil_div(gemm_n, 8 * Config::kNr)));
  const int64_t m_blocks = at_least(1, at_most(ceil_div(wanted, n_blocks), gemm_m / (8 * Config::kMr)));
  return {m_blocks, n_blocks, 1};
}

// dgrad's w[k][c][r][s] is a matrix neither by rows nor by columns, unless it is 1x1 or has one c and every tap is
// in use (an image narrower than the stride has one residue class, and that has some of the taps): it is made one
// first.
constexpr int64_t kReorderRows = 16;  // rows of one reorder unit: enough to use whole lines of w
template <class E>
inline bool needs_reorder(const Gather<E>& map, int64_t classes) {
  return map.weights_m != 1 &&
         (map.weights_channel != map.filter_taps || classes > 1 || map.taps() != map.filter_taps);
}
template <class E>
inline int64_t reordered_size(const Gather<E>& map, int64_t classes, int64_t groups) {
  return needs_reorder(map, classes) ? ceil_div(groups * map.rows * map.channels * map.filter_taps, 32) * 32 : 0;
}

// Bytes of one thread's scratch.
template <class E>
inline int64_t gather_nchw_scratch(int64_t rows, int64_t pixels, int64_t gemm_k) {
  using T = Accumulator<E>;
  return (gemm_scratch_size<T>(pixels, gemm_k) + waiting_size<E>(rows, gemm_k)) * int64_t(sizeof(T));
}

// `make(index)` builds the Gather of one of `classes` residue classes for group 0; class 0 is the largest.
template <class E, class Make>
void gather_nchw(int64_t groups, int64_t classes, const Make& make, int64_t source_group, int64_t weights_group,
                 int64_t rows, char* workspace) {
  using T = Accumulator<E>;
  using Config = GemmConfig<T>;
  const Gather<E> largest = make(0);
  const Units units = gather_units_nchw<T>(rows, largest.pixels(),
                                           largest.filter_taps * largest.channels / classes, groups * classes);
  const int64_t gemm_k = largest.filter_taps * largest.channels;
  const int64_t scratch = gather_nchw_scratch<E>(rows, largest.pixels(), gemm_k);
  E* reordered = nullptr;
  if (needs_reorder(largest, classes)) {
    reordered = reinterpret_cast<E*>(workspace);
    workspace += reordered_size(largest, classes, groups) * int64_t(sizeof(E));
    const int64_t blocks = ceil_div(rows, kReorderRows);
    parallel_for(classes * groups * blocks, [&](int64_t index, int) {
      const int64_t m0 = index % blocks * kReorderRows, group = index / blocks % groups;
      const int64_t residue = index / blocks / groups;
      Gather<E> map = make(residue);
      map.weights += group * weights_group;
      reorder_weights(map, m0, at_most(kReorderRows, rows - m0),
                      reordered + group * weights_group + make.taps_before(residue) * rows * map.channels);
    });
  }
  parallel_for(classes * groups * units.count(), [&](int64_t index, int thread) {
    const int64_t m_block = index % units.m, n_block = index / units.m % units.n;
    const int64_t group = index / units.count() % groups, residue = index / units.count() / groups;
    Gather<E> map = make(residue);
    map.source += group * source_group;
    map.weights += group * weights_group;
    if (reordered) {  // as fprop's: [m][(channel, tap)] with every tap in use
      map.weights = reordered + group * weights_group + make.taps_before(residue) * rows * map.channels;
      map.weights_m = map.gemm_k();
      map.weights_channel = map.filter_taps = map.taps();
    }
    map.out += group * rows * map.out_channel;
    if (map.bias) map.bias += group * rows;
    const Range m = part_of(rows, units.m, m_block, 1);
    const Range n = part_of(map.pixels(), units.n, n_block, Config::kNr);
    if (m.size() == 0 || n.size() == 0) return;
    PackWeightsA<E> pack_a(map);
    PackColsB<E> pack_b(map);
    T* const own = reinterpret_cast<T*>(workspace + thread * scratch);
    gemm_block<T>(m, n, map.gemm_k(), pack_a, pack_b, StorePixels<E>{map}, own,
                  own + gemm_scratch_size<T>(largest.pixels(), gemm_k));
  });
}

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
