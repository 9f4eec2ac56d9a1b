// What every rung of the CUDA GEMM ladder computes, and how it is told where the matrices lie.
//
//   C[m, n] = sum over k of A[m, k] * B[k, n]  (+ bias[m] or bias[n])      0 <= m < gemm_m, and so on
//
// for `batch` independent products (the groups of a convolution), each cut into `splits` parts of its gemm_k.
//
// A matrix is lines of consecutive elements. Which index counts within a line is a template argument:
//
//             kKMajor: a line runs along k        kMnMajor: a line runs along m (of A) or n (of B)
//   A         line m, place k  (row-major)        line k, place m  (column-major)
//   B         line n, place k  (column-major)     line k, place n  (row-major)
//   C         always                              line m, place n
//
// The element at (line, place) of one matrix of the batch is at
//
//   offset + batch*batch_stride + line*line_stride + place / segment * segment_stride + place % segment
//
// A line is cut into segments so that a tensor of images can be an operand in place: the k x npq matrix of an nchw
// y[n][k][p][q] has lines of n segments of pq elements, segment_stride = k*pq apart. A line in one piece has the
// largest int as its segment, so that places past its end, which a kernel masks, are still where they seem to be.
//
// Blocks of a grid are flat: gemm_block() says which tile blockIdx.x has. A kernel takes, in this order,
//
//   gemm_x<T, C, A_MAJOR, B_MAJOR, ...>(GemmProblem problem, const T* a, const T* b, const T* bias, C* c)
//
// and C is T, or Accumulator<T> where c holds partial sums that a later step adds up.
#pragma once
#include "common/numbers.h"

namespace pyconv {

enum Major : int32_t { kKMajor = 0, kMnMajor = 1 };
enum BiasAlong : int32_t { kBiasAlongM = 0, kBiasAlongN = 1 };

// Sizes and strides in elements. Python's twin is in gemm_launch.py: same fields, same order.
struct MatrixLayout {
  int64_t offset, batch_stride, line_stride, segment_stride;
  int32_t segment;  // at least 1
  int32_t extent;   // places in a line
};

struct GemmProblem {
  MatrixLayout a, b, c;
  int64_t split_stride;  // of c, from the partial sums of one split to those of the next
  int64_t bias_stride;   // of the bias, from one product of the batch to the next
  int32_t gemm_m, gemm_n, gemm_k;
  int32_t batch;
  int32_t splits;
  int32_t split_k;     // terms of one split: a multiple of every rung's BK; the last split may have fewer
  int32_t bias_along;  // BiasAlong; there is none if its pointer is null
  int32_t accumulate;  // 1: c += instead of c =
};

// What one block computes: C[m0 .. m0+BM, n0 .. n0+BN] of one product, over the terms k_begin <= k < k_end.
struct GemmBlock {
  int m0, n0, k_begin, k_end;
  int batch, split;
};

// Rows of tiles that are walked together. Blocks start in the order of blockIdx.x, so those that run at the same
// time share kBand tiles of A and the tiles of B next to each other: both are then read from the L2 cache. With
// gemm_m <= kBand tiles (the filters of most layers) every operand is read from DRAM about once.
constexpr int kBand = 8;

template <int BM, int BN>
PYCONV_DEVICE GemmBlock gemm_block(const GemmProblem& problem, unsigned block) {
  const unsigned tiles_m = unsigned(ceil_div(problem.gemm_m, BM)),
                 tiles_n = unsigned(ceil_div(problem.gemm_n, BN));
  const unsigned tile = block % (tiles_m * tiles_n), product = block / (tiles_m * tiles_n);
  const unsigned band = tile / (kBand * tiles_n), in_band = tile % (kBand * tiles_n);
  const unsigned rows = tiles_m - band * kBand < kBand ? tiles_m - band * kBand : kBand;

  GemmBlock at;
  at.m0 = int(band * kBand + in_band % rows) * BM;
  at.n0 = int(in_band / rows) * BN;
  at.split = int(product % unsigned(problem.splits));
  at.batch = int(product / unsigned(problem.splits));
  at.k_begin = at.split * problem.split_k;
  at.k_end = problem.gemm_k - at.k_begin < problem.split_k ? problem.gemm_k : at.k_begin + problem.split_k;
  return at;
}

// Where a line and a place in it lie, from the first element of the matrix. A line in one piece costs no division.
PYCONV_DEVICE int64_t line_offset(const MatrixLayout& matrix, int line) { return line * matrix.line_stride; }
PYCONV_DEVICE int64_t place_offset(const MatrixLayout& matrix, int place) {
  if (place < matrix.segment) return place;
  const int segment = place / matrix.segment;
  return segment * matrix.segment_stride + (place - segment * matrix.segment);
}
// Of the matrix of one product of the batch, from the pointer.
PYCONV_DEVICE int64_t matrix_offset(const MatrixLayout& matrix, int batch) {
  return matrix.offset + batch * matrix.batch_stride;
}
// Whether COUNT elements from a multiple of COUNT within a line are always side by side and aligned to their size,
// if they do not reach past the end of the line.
template <int COUNT>
PYCONV_DEVICE bool has_vectors(const MatrixLayout& matrix) {
  const bool in_segments = matrix.segment < matrix.extent;
  const int64_t strides = matrix.offset | matrix.batch_stride | matrix.line_stride |
                          (in_segments ? matrix.segment | matrix.segment_stride : 0);
  return strides % COUNT == 0;
}

// A[m, k] or B[k, n], 0 outside the matrix. `across` is m or n. Zeros, not stale memory, must meet: 0 * NaN is
// NaN.
template <Major MAJOR, class T>
PYCONV_DEVICE Accumulator<T> element_or_zero(const T* matrix, const MatrixLayout& layout, int across,
                                             int across_end, int k, int k_end) {
  if (across >= across_end || k >= k_end) return 0;
  const int line = MAJOR == kKMajor ? across : k, place = MAJOR == kKMajor ? k : across;
  return widen(matrix[line_offset(layout, line) + place_offset(layout, place)]);
}

// What becomes of a sum that is complete. kRelu keeps a NaN, as torch does.
enum Activation : int32_t { kLinear = 0, kRelu = 1 };

template <Activation ACTIVATION, class Sum>
PYCONV_DEVICE Sum activated(Sum sum) {
  return ACTIVATION == kRelu && sum < 0 ? Sum(0) : sum;
}

// Where line m of C begins, from the C of the product: as its layout says. A caller with other lines (the pixels of a
// residue class) has a type of its own.
struct LayoutLines {
  const MatrixLayout& layout;
  PYCONV_DEVICE_MEMBER int64_t operator()(int line) const { return line_offset(layout, line); }
};

// Stores the sum of C[m, n] at *c. With `add`, an earlier part of it is there already, bias included; the part that
// `is_last` is activated. `bias` is null or that of the product of the batch.
template <Activation ACTIVATION = kLinear, class T, class C>
PYCONV_DEVICE void store_sum(const GemmProblem& problem, const T* bias, int m, int n, Accumulator<T> sum, bool add,
                             C* c, bool is_last = true) {
  if (add)
    sum += widen(*c);
  else if (bias)
    sum += widen(bias[problem.bias_along == kBiasAlongM ? m : n]);
  *c = narrow<C>(is_last ? activated<ACTIVATION>(sum) : sum);
}

// Two words to the compiler, which would rather spend registers than time where there are none left. It moves no
// access to memory across keep_order(): else it loads all of a tile's C before it stores the first element. And it
// computes nothing from recomputed(value) ahead of a loop: else it keeps the address of every element of C.
PYCONV_DEVICE void keep_order() { asm volatile("" ::: "memory"); }
PYCONV_DEVICE int recomputed(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// The block once more, for the epilogue: nothing that finding it takes is kept from the start.
template <int BM, int BN>
PYCONV_DEVICE GemmBlock gemm_block_again(const GemmProblem& problem, unsigned block) {
  GemmProblem again = problem;
  again.gemm_m = recomputed(problem.gemm_m), again.gemm_n = recomputed(problem.gemm_n);
  return gemm_block<BM, BN>(again, unsigned(recomputed(int(block))));
}

// Terms that are added one after the other. The rounding error of a sum grows with the length of its chain: a
// longer one is cut, and C, which lies in the L2 cache, holds the total. That keeps the error within twice that of
// the CPU's libraries, which cut theirs too, and at 256 costs 1 byte of L2 traffic for 64 flops of a 128 x 128 tile,
// half of what its tiles of A and B cost. Sums of 16-bit elements that go straight to C stay in one chain: C could
// not hold a total, and its own rounding is 2^13 times that of the chain's float.
template <class C>
constexpr int kChain = sizeof(C) >= 4 ? 256 : 0x7fffffff;

// The end of the chain that begins at k.
template <class C>
PYCONV_DEVICE int chain_end(int k, int k_end) {
  return k_end - k > kChain<C> ? k + kChain<C> : k_end;
}

}  // namespace pyconv
