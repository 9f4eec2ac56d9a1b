// Shuffles of whole vectors, and the transposition in registers that packing stands on.
#pragma once
#include <utility>

#include "simd.h"

namespace pyconv {
namespace PYCONV_ISA {

// The lane numbers as a compile-time list keep one expression for every width.
template <class T>
using LaneList = std::make_integer_sequence<int, kLanes<T>>;

// a[0] b[0] a[1] b[1] ... of the lower halves, and of the upper halves.
template <class T, int... kLane>
inline Vec<T> interleave_low(const Vec<T>& a, const Vec<T>& b, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, (kLane / 2 + kLane % 2 * kLanes<T>)...);
}
template <class T, int... kLane>
inline Vec<T> interleave_high(const Vec<T>& a, const Vec<T>& b, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, (kLanes<T> / 2 + kLane / 2 + kLane % 2 * kLanes<T>)...);
}
// Every second lane of a, then of b.
template <class T, int... kLane>
inline Vec<T> even_lanes(const Vec<T>& a, const Vec<T>& b, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, (2 * kLane)...);
}

// rows[i][j] <-> rows[j][i] of kLanes x kLanes elements. Each stage rotates the bits of (row, lane) by one place;
// log2(kLanes) stages exchange row and lane.
template <class T>
inline void transpose(Vec<T> (&rows)[kLanes<T>]) {
  constexpr int kHalf = kLanes<T> / 2;
#pragma GCC unroll 4
  for (int stage = 1; stage < kLanes<T>; stage *= 2) {
    Vec<T> next[kLanes<T>];
#pragma GCC unroll 8
    for (int i = 0; i < kHalf; ++i) {
      next[2 * i] = interleave_low<T>(rows[i], rows[i + kHalf], LaneList<T>{});
      next[2 * i + 1] = interleave_high<T>(rows[i], rows[i + kHalf], LaneList<T>{});
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i) rows[i] = next[i];
  }
}

}  // namespace PYCONV_ISA
}  // namespace pyconv
