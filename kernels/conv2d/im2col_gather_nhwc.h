// fprop and dgrad, nhwc:  out[pixels, m] = cols[pixels, (tap, channel)] * weights[(tap, channel), m]
//
// gemm_m = output pixels of all images, gemm_n = output channels of a group, gemm_k = taps * channels. The filter
// is packed once per call, shared by all units; a unit is a block of pixels by a block of channels, and packs one
// mr x kc sliver of cols at a time: 18 KB, just before it is used.
#pragma once
#include "conv2d/im2col_pack_nhwc.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

template <class E>
struct StoreChannels {
  using T = Accumulator<E>;
  static constexpr bool rounds = sizeof(E) == 2;
  const Gather<E>& map;

  Tile<E> tile(int64_t m0, int64_t n0, int, int64_t columns) const {
    if (!map.dense_out()) return {};
    return {map.out + m0 * map.out_pixel + n0, map.out_pixel, columns, nullptr,
            map.bias ? map.bias + n0 : nullptr};
  }

  // The last channels of a group, or pixels of a residue class.
  void scatter(const T* sums, int64_t stride, int64_t m0, int64_t n0, int rows, int64_t columns,
               bool first) const {
    const Axis &h = map.h, &w = map.w;
    Place place(m0, h, w);
    for (int i = 0; i < rows; ++i, place.advance(1, h, w)) {
      E* to = map.out + place.image * map.out_image + (h.first_place + place.i * h.place_step) * map.out_row +
              (w.first_place + place.j * w.place_step) * map.out_pixel + n0;
      const T* from = sums + i * stride;
      for (int64_t j = 0; j < columns; j += kLanes<T>) {
        const int lanes = int(at_most(kLanes<T>, columns - j));
        Vec<T> value = load_partial(from + j, lanes);
        if (!first)
          value += load_partial(to + j, lanes);
        else if (map.bias)
          value += load_partial(map.bias + n0 + j, lanes);
        store_partial<E>(to + j, value, lanes);
      }
    }
  }
};

template <class T>
inline Units gather_units_nhwc(int64_t gemm_m, int64_t gemm_n, int64_t gemm_k, int64_t copies) {
  using Config = GemmConfig<T>;
  const int64_t wanted = units_wanted(gemm_m, gemm_n, gemm_k, copies);
  // Pixels first, down to 8 panels (a B panel comes into L2 once for so many); then channels, down to 4 slivers
  // (an A sliver is packed once for so many tiles).
  const int64_t m_blocks = at_least(1, at_most(wanted, gemm_m / (8 * Config::kMr)));
  const int64_t n_blocks = at_least(1, at_most(ceil_div(wanted, m_blocks), gemm_n / (4 * Config::kNr)));
  return {m_blocks, n_blocks, 1};
}

// Bytes of one thread's scratch.
template <class E>
inline int64_t gather_nhwc_scratch(int64_t pixels, int64_t gemm_k) {
  using T = Accumulator<E>;
  return (gemm_scratch_size<T>(0, 0) + waiting_size<E>(pixels, gemm_k)) * int64_t(sizeof(T));
}

// Packed filters: every group and class has its own panels, the classes with kc blocks of their own.
template <class T>
inline int64_t packed_weights_size(int64_t groups, int64_t classes, int64_t rows, int64_t gemm_k) {
  // A class adds at most one kc block to those of the whole filter; its slack is one vector a sliver.
  return groups *
         (PackedWeights<T>::size(rows, gemm_k) + classes * ceil_div(rows, GemmConfig<T>::kNr) * kLanes<T>);
}

// `make(index)` builds the Gather of one of `classes` residue classes for group 0; class 0 is the largest.
template <class E, class Make>
void gather_nhwc(int64_t groups, int64_t classes, const Make& make, int64_t weights_group, int64_t rows,
                 char* workspace) {
  using T = Accumulator<E>;
  using Config = GemmConfig<T>;
  const Gather<E> largest = make(0);
  const int64_t gemm_k = largest.filter_taps * largest.channels;
  const Units units = gather_units_nhwc<T>(largest.pixels(), rows, gemm_k / classes, groups * classes);
  const int64_t slivers = ceil_div(rows, Config::kNr);

  // A class's panels begin after those of the classes before it, whose taps are a prefix sum.
  auto of_group = [&](Gather<E> map, int64_t group) {
    map.weights += group * weights_group;
    map.out += group * rows;
    if (map.bias) map.bias += group * rows;
    return map;
  };
  T* panels = reinterpret_cast<T*>(workspace);
  const int64_t group_panels = packed_weights_size<T>(1, classes, rows, gemm_k);
  workspace += groups * group_panels * int64_t(sizeof(T));
  const int64_t scratch = gather_nhwc_scratch<E>(largest.pixels(), gemm_k);
  auto panels_of = [&](int64_t taps_before, int64_t group, int64_t residue) {
    const int64_t blocks_before = ceil_div(taps_before * largest.channels, Config::kKc) + residue;
    return panels + group * group_panels +
           slivers * (taps_before * largest.channels * Config::kNr + blocks_before * kLanes<T>);
  };

  int64_t taps_before = 0;
  for (int64_t residue = 0; residue < classes; ++residue) {
    const Gather<E> map = make(residue);
    const int64_t blocks = ceil_div(map.gemm_k(), Config::kKc);
    parallel_for(groups * blocks * slivers, [&](int64_t index, int) {
      const int64_t sliver = index % slivers, block = index / slivers % blocks, group = index / slivers / blocks;
      const Gather<E> part = of_group(map, group);
      PackedWeights<E>{part, panels_of(taps_before, group, residue)}.pack(block * Config::kKc, sliver);
    });
    taps_before += map.taps();
  }

  parallel_for(classes * groups * units.count(), [&](int64_t index, int thread) {
    const int64_t n_block = index % units.n, m_block = index / units.n % units.m;
    const int64_t group = index / units.count() % groups, residue = index / units.count() / groups;
    const int64_t before = make.taps_before(residue);
    const Gather<E> map = of_group(make(residue), group);
    const Range m = part_of(map.pixels(), units.m, m_block, 1);
    const Range n = part_of(rows, units.n, n_block, Config::kNr);
    if (m.size() == 0 || n.size() == 0) return;
    PackColsA<E> pack_a(map, group * map.channels);
    const PackedWeights<E> pack_b{map, panels_of(before, group, residue)};
    T* const own = reinterpret_cast<T*>(workspace + thread * scratch);
    gemm_block<T>(m, n, map.gemm_k(), pack_a, pack_b, StoreChannels<E>{map}, own,
                  own + gemm_scratch_size<T>(0, 0));
  });
}

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
