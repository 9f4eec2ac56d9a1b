// The index map of a depthwise convolution along one axis, the same for gathering y from x and dx from dy.
//
//   fprop   y[q] gathers x[q*stride - pad + s*dilation] from every tap s
//   dgrad   dx[w] gathers dy[(w + pad - s*dilation) / stride] from the taps for which that divides
//
// Which taps those are depends on the phase w % stride alone, and within a phase neighbouring outputs read
// neighbouring inputs.
//
// So in both, output `phase + i*out_step` reads input `first + i*in_step` from each tap of its phase, for the i of
// [begin, end) whose input exists. Padding is never read, so no zero is ever multiplied with a weight.
#pragma once
#include <type_traits>
#include <utility>

#include "common/simd.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

// One filter for each channel. The kernels refuse anything else.
inline bool is_depthwise(const Conv2dProblem& problem) {
  return problem.groups == problem.c && problem.groups == problem.k;
}

struct DepthwiseTap {
  int64_t tap, first;
  int64_t begin, end;  // of i
};

struct DepthwiseAxis {
  int64_t outputs, out_step, in_step, phases;
  DepthwiseTap* taps;  // by phase, ascending within it
  int64_t* starts;     // phase f owns taps[starts[f]] .. taps[starts[f + 1] - 1]

  int64_t count(int64_t phase) const { return (outputs - phase + out_step - 1) / out_step; }
  const DepthwiseTap* begin(int64_t phase) const { return taps + starts[phase]; }
  const DepthwiseTap* end(int64_t phase) const { return taps + starts[phase + 1]; }
};

struct DepthwiseAxisSizes {
  int64_t outputs, inputs, taps, stride, pad, dilation;
  bool dgrad;
  int64_t phases() const { return dgrad ? (stride < outputs ? stride : outputs) : 1; }
  int64_t bytes() const {
    return taps * int64_t(sizeof(DepthwiseTap)) + (phases() + 1) * int64_t(sizeof(int64_t));
  }
};

// Builds the axis in `memory` and moves the pointer past it.
inline DepthwiseAxis make_axis(const DepthwiseAxisSizes& sizes, char*& memory) {
  DepthwiseAxis axis{sizes.outputs,  sizes.dgrad ? sizes.stride : 1,          sizes.dgrad ? 1 : sizes.stride,
                     sizes.phases(), reinterpret_cast<DepthwiseTap*>(memory), nullptr};
  memory += sizes.taps * int64_t(sizeof(DepthwiseTap));
  axis.starts = reinterpret_cast<int64_t*>(memory);
  memory += (axis.phases + 1) * int64_t(sizeof(int64_t));
  int64_t found = 0;
  for (int64_t phase = 0; phase < axis.phases; ++phase) {
    axis.starts[phase] = found;
    for (int64_t tap = 0; tap < sizes.taps; ++tap) {
      int64_t first = tap * sizes.dilation - sizes.pad;
      if (sizes.dgrad) {
        if ((phase - first) % sizes.stride != 0) continue;
        first = (phase - first) / sizes.stride;
      }
      const int64_t step = axis.in_step, begin = first < 0 ? (-first + step - 1) / step : 0;
      const int64_t room = first < sizes.inputs ? (sizes.inputs - first + step - 1) / step : 0;
      const int64_t end = room < axis.count(phase) ? room : axis.count(phase);
      if (begin < end) axis.taps[found++] = {tap, first, begin, end};
    }
  }
  axis.starts[axis.phases] = found;
  return axis;
}

// The i at which every tap of [from, to) has an input; no taps: none.
struct DepthwiseCommon {
  int64_t begin, end;
  DepthwiseCommon(const DepthwiseTap* from, const DepthwiseTap* to) : begin(0), end(from < to ? from->end : 0) {
    for (; from < to; ++from) {
      begin = from->begin > begin ? from->begin : begin;
      end = from->end < end ? from->end : end;
    }
    if (end < begin) end = begin;
  }
};

// ---- Rows of pixels as vectors (nchw) -------------------------------------------------------------------------

template <class T, int... kLane>
inline Vec<T> every_other(const Vec<T>& a, const Vec<T>& b, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, (2 * kLane)...);
}

// Lanes [begin, end) from from[lane*step], zero in the others; nothing else is read. begin < end.
template <class T>
inline Vec<T> load_lanes(const T* from, int64_t step, int begin, int end) {
  if (step == 1) return load_range(from, begin, end);
  if (step == 2) {
    constexpr int kHalf = kLanes<T>;
    const int first = 2 * begin, last = 2 * end - 1;  // elements [first, last)
    const Vec<T> low = load_range(from, first < kHalf ? first : kHalf, last < kHalf ? last : kHalf);
    const Vec<T> high =
        load_range(from + kHalf, first > kHalf ? first - kHalf : 0, last > kHalf ? last - kHalf : 0);
    return every_other<T>(low, high, std::make_integer_sequence<int, kLanes<T>>{});
  }
  Accumulator<T> lanes[kLanes<T>] = {};
  for (int lane = begin; lane < end; ++lane) lanes[lane] = widen(from[lane * step]);
  return load(lanes);
}

template <class T, int... kLane>
inline Mask<T> lane_numbers(std::integer_sequence<int, kLane...>) {
  return Mask<T>{kLane...};
}
template <class T>
inline Mask<T> lanes_between(int begin, int end) {
  const Mask<T> lane = lane_numbers<T>(std::make_integer_sequence<int, kLanes<T>>{});
  return (lane >= begin) & (lane < end);
}

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
