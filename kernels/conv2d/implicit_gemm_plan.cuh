// What implicit_gemm_launch.py decides for fprop and dgrad, and which part of it a block computes.
//
//   fprop   gemm_m = n p q                gemm_n = k / groups    gemm_k = r s c/groups     "in" is x,  "out" y
//   dgrad   gemm_m = n h w of a class     gemm_n = c / groups    gemm_k = r s k/groups     "in" is dy, "out" dx
//
// Both are one gather (gather.cuh): a row of the matrix A is an output pixel, and its element k is the pixel of
// `in` that tap (r, s) reaches, at one channel. A is never in memory. In dgrad the pixels of dx fall into residue
// classes of the stride, each of which has its own taps: every class is a product of its own, as large as its taps
// are many, and blocks of all classes stand in one grid, those with the most taps first.
#pragma once
#include "common/divisor.h"
#include "conv2d/gather.cuh"
#include "gemm/operands.h"

namespace pyconv {

constexpr int kMostClasses = 8;  // of an axis, in one launch; a larger stride takes several

// Same fields and order as in implicit_gemm_plan.py.
struct GatherClass {
  AxisClass axis;
  Divisor outputs;  // axis.out_count
};
struct GatherAxis {
  int32_t in_extent, out_extent;  // of the tensors
  int32_t in_step;                // rows of `in` between neighbouring outputs, and
  int32_t tap_step;               // between neighbouring taps
  GatherClass of[kMostClasses];
};
struct GatherPlan {
  GemmProblem gemm;  // gemm_m of the largest class; B and C are w and `out`, the bias is fprop's
  GatherAxis rows, columns;
  int32_t column_classes;               // of this launch
  int32_t images;                       // n
  int32_t in_channels, group_channels;  // of `in`: all, and those of a group
  int32_t in_width;                     // elements of `in` that one access may take
  int32_t filter_rows, filter_columns;  // r, s
};

// The class of a block. fprop has but one, whose numbers the compiler then finds at a constant address. Those of dgrad
// are loaded anew wherever they are needed: registers are for sums.
template <Pass PASS>
struct ClassIndex {
  int row, column;
  PYCONV_DEVICE_MEMBER const GatherClass& of_rows(const GatherPlan& plan) const {
    return plan.rows.of[PASS == kFprop ? 0 : recomputed(row)];
  }
  PYCONV_DEVICE_MEMBER const GatherClass& of_columns(const GatherPlan& plan) const {
    return plan.columns.of[PASS == kFprop ? 0 : recomputed(column)];
  }
};

template <Pass PASS>
struct GatherBlock {
  GemmBlock gemm;
  ClassIndex<PASS> at;
  int gemm_m;  // of the class
  int gemm_k;
};

template <Pass PASS, int BM, int BN>
PYCONV_DEVICE GatherBlock<PASS> gather_block(const GatherPlan& plan, unsigned block) {
  GemmProblem gemm = plan.gemm;  // the epilogue finds its block once more: nothing that takes is kept (operands.h)
  gemm.gemm_m = recomputed(gemm.gemm_m), gemm.gemm_n = recomputed(gemm.gemm_n);
  const unsigned of_class =
      unsigned(ceil_div(gemm.gemm_m, BM)) * unsigned(ceil_div(gemm.gemm_n, BN)) * unsigned(gemm.batch);
  GatherBlock<PASS> at;
  const int number = PASS == kFprop ? 0 : int(block / of_class);
  at.gemm = gemm_block<BM, BN>(gemm, PASS == kFprop ? block : block % of_class);
  at.at = {number / plan.column_classes, number % plan.column_classes};
  const AxisClass &rows = at.at.of_rows(plan).axis, &columns = at.at.of_columns(plan).axis;
  at.gemm_m = plan.images * rows.out_count * columns.out_count;
  at.gemm_k = rows.taps * columns.taps * plan.group_channels;
  return at;
}

// A row of the matrix: an output pixel of the class.
struct GatherPixel {
  int image, row, column;  // counted within the class
};
PYCONV_DEVICE GatherPixel gather_pixel(const GatherClass& rows, const GatherClass& columns, int m) {
  GatherPixel at;
  at.image = quotient(quotient(m, columns.outputs, at.column), rows.outputs, at.row);
  return at;
}

// Where row m of a class lies in `out`: in fprop line by line, in dgrad at every stride-th row and column.
template <Pass PASS>
struct GatherLines {
  const GatherPlan& plan;
  ClassIndex<PASS> index;
  PYCONV_DEVICE_MEMBER int64_t operator()(int m) const {
    if (PASS == kFprop) return line_offset(plan.gemm.c, m);
    const GatherClass &rows = index.of_rows(plan), &columns = index.of_columns(plan);
    const GatherPixel at = gather_pixel(rows, columns, m);
    const int row = rows.axis.out_origin + at.row * rows.axis.out_step;
    const int column = columns.axis.out_origin + at.column * columns.axis.out_step;
    return line_offset(plan.gemm.c, (at.image * plan.rows.out_extent + row) * plan.columns.out_extent + column);
  }
};

}  // namespace pyconv
