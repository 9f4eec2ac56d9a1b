// Depthwise convolution in nchw, forward and input gradient: one plane in, one plane out.
//
//   fprop   y[n,k,p,q]  = bias[k] + sum over r,s of   x[n,k/m,h,w] * w[k,r,s]
//   dgrad   dx[n,c,h,w] =           sum over j,r,s of dy[n,cm+j,p,q] * w[cm+j,r,s]     m filters per channel
//
// Thread:  ROWS outputs below each other in one column. It walks down the input rows they share, and gives each
//          value it loads to every output that has a tap on it: a 3x3 filter at stride 1 loads (ROWS+2)*3 values
//          for ROWS outputs, 4.5 each instead of 9.
// Block:   blockDim.x neighbours of a row (so that loads are coalesced), blockDim.y strips, blockDim.z planes:
//          small planes share a block.
//
// With r*s multiplications for an element read and one written, memory is the bound: the floor is each of them
// once. The taps that overlap between threads are read again, but from L1: 4.5 loads of 4 bytes and one store for
// 8 bytes of DRAM traffic, where an H100 moves about 8 bytes through L1 for one from DRAM.
//
// Padding takes no part in a sum. An output adds its taps in the order j, r, s, wherever it lies.
#include "common/numbers.h"
#include "conv2d/depthwise_axis.cuh"

namespace pyconv {

// Loads of the ROWS outputs are shared where the distance of their input rows is known: STRIDE > 0, and in dgrad
// 1. With R == 0 the filter's size is known when running, and nothing is shared.
template <class T, bool kDgrad, int R, int S, int STRIDE, int ROWS>
__global__ void __launch_bounds__(256, kDepthwiseBlocks<T>)
    depthwise_nchw(Conv2dProblem problem, const T* __restrict__ in, const T* __restrict__ w,
                   const T* __restrict__ bias, T* __restrict__ out) {
  static_assert((R == 0) == (S == 0) && (R == 0) == (STRIDE == 0), "all known when compiling, or none");
  constexpr bool kShared = STRIDE > 0 && (!kDgrad || STRIDE == 1);
  const DepthwiseGather<kDgrad, STRIDE> gather(problem);
  const int64_t plane = int64_t(blockIdx.x) * blockDim.z + threadIdx.z;
  const int column = blockIdx.y * blockDim.x + threadIdx.x;
  const int first_row = (blockIdx.z * blockDim.y + threadIdx.y) * ROWS;
  if (plane >= problem.n * gather.out_channels) return;
  if (column >= gather.out_columns || first_row >= gather.out_rows) return;
  const int n = int(plane / gather.out_channels), channel = int(plane - int64_t(n) * gather.out_channels);

  Accumulator<T> sums[ROWS] = {};
  for (int j = 0; j < gather.filters(); ++j) {
    const int k = gather.filter(channel, j);
    const T* filter = w + int64_t(k) * gather.taps_r * gather.taps_s;
    const T* plane_in =
        in + (int64_t(n) * gather.in_channels + gather.in_channel(k)) * gather.in_rows * gather.in_columns;
    if constexpr (kShared) {
      Accumulator<T> weights[R][S];
      int columns_in[S];
      PYCONV_UNROLL
      for (int s = 0; s < S; ++s) {
        columns_in[s] = gather.columns.input_at(column, s);
        PYCONV_UNROLL
        for (int r = 0; r < R; ++r) weights[r][s] = widen(filter[r * S + s]);
      }
      // fprop walks down its input rows, dgrad up: in both, tap r of the first output comes before tap r+1.
      const int start = first_row + (kDgrad ? ROWS - 1 : 0);  // the output whose tap 0 is at step 0
      PYCONV_UNROLL
      for (int step = 0; step < (ROWS - 1) * STRIDE + R; ++step) {
        const int row_in = gather.rows.input_at(start, step);
        if (row_in < 0) continue;
        const T* row = plane_in + int64_t(row_in) * gather.in_columns;
        PYCONV_UNROLL
        for (int s = 0; s < S; ++s) {
          if (columns_in[s] < 0) continue;
          const Accumulator<T> value = widen(row[columns_in[s]]);
          PYCONV_UNROLL
          for (int o = 0; o < ROWS; ++o) {
            const int r = step - (kDgrad ? ROWS - 1 - o : o * STRIDE);
            if (r >= 0 && r < R) sums[o] = fused(value, weights[r][s], sums[o]);
          }
        }
      }
    } else {
      const int taps_r = R ? R : gather.taps_r, taps_s = S ? S : gather.taps_s;
      for (int r = 0; r < taps_r; ++r) {
        for (int s = 0; s < taps_s; ++s) {
          const int column_in = gather.columns.input_at(column, s);
          if (column_in < 0) continue;
          const Accumulator<T> weight = widen(filter[r * taps_s + s]);
          PYCONV_UNROLL
          for (int o = 0; o < ROWS; ++o) {
            const int row_in = gather.rows.input_at(first_row + o, r);
            if (row_in < 0) continue;
            const Accumulator<T> value = widen(plane_in[int64_t(row_in) * gather.in_columns + column_in]);
            sums[o] = fused(value, weight, sums[o]);
          }
        }
      }
    }
  }

  T* plane_out = out + plane * gather.out_rows * gather.out_columns;
  PYCONV_UNROLL
  for (int o = 0; o < ROWS; ++o) {
    if (first_row + o >= gather.out_rows) break;
    const Accumulator<T> sum = bias ? sums[o] + widen(bias[channel]) : sums[o];
    plane_out[int64_t(first_row + o) * gather.out_columns + column] = narrow<T>(sum);
  }
}

}  // namespace pyconv
