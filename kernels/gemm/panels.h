// The panel forms a blocked GEMM reads, and the pieces that write them.
//
//   C[m, n] += sum over k of A[m, k] * B[k, n]
//
// B panel: slivers of nr columns, each stored [kc][nr], so the register tile reads two whole vectors per
//          step of k from consecutive memory. A last sliver of at most one vector of columns is [kc][nr/2].
// A panel: one sliver of up to mr rows, either "row form" [mr][kRowStride] (rows of A that are contiguous
//          along k are plain copies) or "k-major form" [kc][kMrPadded] (columns of A that are contiguous
//          along m are plain copies). Both serve: the tile reads A one broadcast scalar at a time.
//
// Writers may store whole vectors past the end of a row as long as what they cover is written later: every
// sliver ends in one vector of slack. Panels hold T, float or double; elements E of 16 bits are widened on the way in.
#pragma once
#include <utility>

#include "common/transpose.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

template <class T>
struct GemmConfig {
  // Register tile: mr x 2 vectors of sums, 2 vectors of B, the rest for the broadcast and (without FMA) the
  // product: 28 + 2 of 32 registers (AVX-512), 12 + 2 of 16. mr*2 sums also cover the FMA's latency of 4.
  static constexpr int kMr = kVectorRegisters == 32 ? 14 : 6;
  static constexpr int kVectors = 2;
  static constexpr int kNr = kVectors * kLanes<T>;
  // kc: an A sliver of mr*kc (18 KB at mr = 14) stays in the 32 KB L1 while B slivers stream through it;
  // longer kc means fewer read-modify-writes of C, shorter kc a smaller rounding error.
  static constexpr int64_t kKc = 1280 / int64_t(sizeof(T));
  // nc: the kc x nc panel of B (480 KB) takes half of a 1 MB L2.
  static constexpr int64_t kNc = 384;
  static constexpr int64_t kRowStride = kKc + kLanes<T>;  // off a power of two: rows fall in different cache sets
  static constexpr int kMrPadded = (kMr + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
  static constexpr int64_t kASize = kMr * kRowStride > kKc* kMrPadded ? kMr * kRowStride : kKc * kMrPadded;
  static_assert(kNc % kNr == 0, "a B panel is made of whole slivers");
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }

// Elements from one sliver of a B panel to the next, and the columns a sliver is stored with.
template <class T>
inline int64_t sliver_stride(int64_t kc) {
  return kc * GemmConfig<T>::kNr + kLanes<T>;
}
template <class T>
inline int sliver_width(int64_t columns) {
  return columns <= kLanes<T> ? kLanes<T> : GemmConfig<T>::kNr;
}
// Elements of a B panel, and of all panels of a B that is packed once, one kc block after the other.
template <class T>
inline int64_t panel_size(int64_t kc, int64_t columns) {
  return ceil_div(columns, GemmConfig<T>::kNr) * sliver_stride<T>(kc);
}
template <class T>
inline int64_t panel_offset(int64_t k0, int64_t columns) {
  const int64_t blocks = ceil_div(k0, GemmConfig<T>::kKc);
  return ceil_div(columns, GemmConfig<T>::kNr) * (k0 * GemmConfig<T>::kNr + blocks * kLanes<T>);
}

// ---- Loads that know where a row ends ----------------------------------------------------------------

// Lane i is row[first + i] where 0 <= first + i < extent, else 0. Reads nothing outside the row.
template <class T>
inline Vec<T> load_between(const T* row, int64_t first, int64_t extent) {
#if defined(__AVX512F__)
  // Two unsigned comparisons in one: a negative place is a large one. Exact while rows, padding included, are
  // shorter than 2^30 elements: the kernels' supports rule.
  if constexpr (kLanes<T> == 16) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i place = _mm512_add_epi32(_mm512_set1_epi32(int(first)), lane);
    return load_masked(row + first, _mm512_cmplt_epu32_mask(place, _mm512_set1_epi32(int(extent))));
  } else {
    const __m512i lane = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i place = _mm512_add_epi64(_mm512_set1_epi64(first), lane);
    return load_masked(row + first, _mm512_cmplt_epu64_mask(place, _mm512_set1_epi64(extent)));
  }
#else
  if (first >= 0 && first + kLanes<T> <= extent) return load(row + first);
  const int64_t begin = first >= 0 ? 0 : at_most(-first, kLanes<T>), end = at_most(extent - first, kLanes<T>);
  return begin < end ? load_range(row + first, int(begin), int(end)) : Vec<T>{};
#endif
}

// Lane i is row[first + i*step] where that is inside the row, else 0. kStep 1, 2 and 4 are loads and
// shuffles; kStep 0 takes the step at run time.
template <int kStep, class E, class T = Accumulator<E>>
inline Vec<T> load_strided(const E* row, int64_t first, int64_t extent, int64_t step) {
  if constexpr (kStep == 1) {
    return load_between(row, first, extent);
  } else if constexpr (kStep > 1) {
    constexpr int kHalf = kStep / 2;
    return even_lanes<T>(load_strided<kHalf>(row, first, extent, step),
                         load_strided<kHalf>(row, first + kLanes<T> * kHalf, extent, step), LaneList<T>{});
  } else {
    T lanes[kLanes<T>];
    for (int lane = 0; lane < kLanes<T>; ++lane, first += step)
      lanes[lane] = first >= 0 && first < extent ? widen(row[first]) : T(0);
    return load(lanes);
  }
}

// ---- Copies ------------------------------------------------------------------------------------------

// `count` elements in whole vectors: reads exactly them, may write up to a vector past them.
template <class T, class E>
inline void copy_run(T* to, const E* from, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) store(to + i, load(from + i));
  if (i < count) store(to + i, load_partial(from + i, int(count - i)));
}

// The same; `ahead` elements further on is what the next copy takes, too short a run for the hardware to see
// coming.
template <class T, class E>
inline void copy_run_prefetching(T* to, const E* from, int64_t count, int64_t ahead) {
  for (int64_t i = 0; i < count; i += kLanes<T>) __builtin_prefetch(from + ahead + i, 0, 2);
  copy_run(to, from, count);
}

// A B sliver from rows that are contiguous along k: to[k][column] = from[column*from_stride + k], k < kc.
template <class T, class E>
[[gnu::noinline]] void pack_transposed(T* to, int width, const E* from, int64_t from_stride, int64_t columns,
                                       int64_t kc) {
  for (int64_t column = 0; column < columns; column += kLanes<T>) {
    for (int64_t k = 0; k < kc; k += kLanes<T>) {
      const int steps = int(at_most(kLanes<T>, kc - k));
      Vec<T> block[kLanes<T>];
      for (int i = 0; i < kLanes<T>; ++i) __builtin_prefetch(from + (column + kLanes<T> + i) * from_stride + k);
      if (steps == kLanes<T> && columns - column >= kLanes<T>) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes<T>; ++i) block[i] = load(from + (column + i) * from_stride + k);
      } else {
        for (int i = 0; i < kLanes<T>; ++i)
          block[i] = column + i < columns ? load_partial(from + (column + i) * from_stride + k, steps) : Vec<T>{};
      }
      transpose<T>(block);
      for (int i = 0; i < steps; ++i) store(to + (k + i) * width + column, block[i]);
    }
  }
}

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
