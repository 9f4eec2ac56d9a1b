// fprop and dgrad as one gather: every output pixel sums over a list of taps, for each tap one input pixel.
//
//   fprop   y[n,k,p,q]  = sum over c,r,s of  x[n,c,h,w] * w[k,c,r,s]   h = p*stride_h - pad_top + r*dilation_h
//   dgrad   dx[n,c,h,w] = sum over k,r,s of dy[n,k,p,q] * w[k,c,r,s]   p = (h + pad_top - r*dilation_h) / stride_h
//                                                                      where the division is exact; w, q alike
//
// "out" and "in" stand for y and x in fprop, for dx and dy in dgrad. The rows of dx fall into stride_h residue
// classes (h mod stride_h). Within one class the rows r that divide exactly are the same, stride_h / gcd(stride_h,
// dilation_h) apart, and the rows p that neighbouring ones read are dilation_h / gcd(stride_h, dilation_h) apart.
// Columns alike. So no zero is ever multiplied in for the stride. index_map.h is the same for the CPU.
#pragma once
#include "common/cuda.h"

namespace pyconv {

enum Pass : int32_t { kFprop = 0, kDgrad = 1 };

// One axis of one class. Output i of the class is output row out_origin + i*out_step; its tap t is filter row
// tap_origin + t*tap_step, and reads input row in_origin + i*(stride, in dgrad 1) + t*(places between taps). Taps
// are numbered by the input they read, upwards.
struct AxisClass {
  int out_origin, out_step, out_count;
  int taps, tap_origin, tap_step;
  int in_origin;
};

PYCONV_DEVICE AxisClass fprop_axis(int outputs, int taps, int pad) { return {0, 1, outputs, taps, 0, 1, -pad}; }

// `period`: filter rows between two that divide exactly, stride / gcd(stride, dilation).
PYCONV_DEVICE AxisClass dgrad_axis(int outputs, int taps, int pad, int stride, int dilation, int period,
                                   int residue) {
  AxisClass axis{residue, stride, (outputs - residue + stride - 1) / stride, 0, 0, -period, 0};
  for (int first = 0; first < taps && first < period; ++first) {
    if ((residue + pad - first * dilation) % stride != 0) continue;
    axis.taps = (taps - 1 - first) / period + 1;
    axis.tap_origin = first + (axis.taps - 1) * period;
    axis.in_origin = (residue + pad - axis.tap_origin * dilation) / stride;
  }
  return axis;  // a class that no tap reaches has no taps, and is zero
}

}  // namespace pyconv
