// One axis of a depthwise convolution: which input a tap of an output reads, in fprop and dgrad alike.
//
//   fprop   input = output*stride - pad + tap*dilation                 (h from p and r, w from q and s)
//   dgrad   input = (output + pad - tap*dilation) / stride, if whole   (p from h and r, q from w and s)
#pragma once
#include "common/cuda.h"

namespace pyconv {

// Blocks of 256 threads that a multiprocessor holds at least: up to 128 registers a thread. Told nothing, the
// compiler aims at more blocks and spills. Doubles take two registers each.
template <class T>
constexpr int kDepthwiseBlocks = sizeof(T) == 8 ? 1 : 2;

// kStride is the stride where it is known when compiling (dilation is then 1), else 0.
template <bool kDgrad, int kStride>
struct DepthwiseAxis {
  int stride, pad, dilation, inputs;

  // The input that `tap` of `output` reads, or -1 if that is padding or between two strides.
  PYCONV_HOST_DEVICE int input_at(int output, int tap) const {
    const int step = kStride ? kStride : stride, spread = kStride ? 1 : dilation;
    if (!kDgrad) {
      const int input = output * step - pad + tap * spread;
      return input >= 0 && input < inputs ? input : -1;
    }
    const int scaled = output + pad - tap * spread;
    if (scaled < 0 || scaled % step != 0 || scaled / step >= inputs) return -1;
    return scaled / step;
  }
};

// What a pass reads and writes. `multiplier` filters, k = c*multiplier + j, belong to each channel c.
template <bool kDgrad, int kStride>
struct DepthwiseGather {
  int in_channels, in_rows, in_columns, out_channels, out_rows, out_columns, multiplier, taps_r, taps_s;
  DepthwiseAxis<kDgrad, kStride> rows, columns;

  PYCONV_HOST_DEVICE explicit DepthwiseGather(const Conv2dProblem& problem)
      : in_channels(int(kDgrad ? problem.k : problem.c)),
        in_rows(int(kDgrad ? problem.p() : problem.h)),
        in_columns(int(kDgrad ? problem.q() : problem.w)),
        out_channels(int(kDgrad ? problem.c : problem.k)),
        out_rows(int(kDgrad ? problem.h : problem.p())),
        out_columns(int(kDgrad ? problem.w : problem.q())),
        multiplier(int(problem.group_k())),
        taps_r(int(problem.r)),
        taps_s(int(problem.s)),
        rows{int(problem.stride_h), int(problem.pad_top), int(problem.dilation_h), in_rows},
        columns{int(problem.stride_w), int(problem.pad_left), int(problem.dilation_w), in_columns} {}

  // Filters that an output sums over: its own in fprop, all of its channel's in dgrad.
  PYCONV_HOST_DEVICE int filters() const { return kDgrad ? multiplier : 1; }
  PYCONV_HOST_DEVICE int filter(int out_channel, int j) const {
    return kDgrad ? out_channel * multiplier + j : out_channel;
  }
  // The channel of the input that filter k meets.
  PYCONV_HOST_DEVICE int in_channel(int k) const { return kDgrad ? k : k / multiplier; }
};

}  // namespace pyconv
