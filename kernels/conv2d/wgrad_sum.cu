// The last step of a weight gradient whose pixels were split: adds up the splits' partial sums.
//
//   dw[k,c,r,s] = sum over splits of partial[split][k][c][r][s]
//
// Block:   32 neighbouring elements of the workspace, kRows rows of threads.
// Thread:  every kRows-th split of one element; then the kRows sums are added in order.
//
// The workspace is always in the order k,c,r,s, in which the splits are read whole lines at a time; only the
// result, written once, is scattered in nhwc.
#include "common/numbers.h"
#include "conv2d/tensor.cuh"

namespace pyconv {

template <class T, Layout kLayout, int kRows>
__global__ void __launch_bounds__(kWarpSize* kRows)
    wgrad_sum_splits(Conv2dProblem problem, int32_t splits, const Accumulator<T>* __restrict__ partial,
                     T* __restrict__ dw_data) {
  using Sum = Accumulator<T>;
  PYCONV_SHARED(Sum, sums, [kRows][kWarpSize]);
  const int64_t size = problem.w_size(), element = int64_t(blockIdx.x) * kWarpSize + threadIdx.x % kWarpSize;
  const int row = int(threadIdx.x) / kWarpSize;
  Sum sum = 0;
  if (element < size) {
    for (int split = row; split < splits; split += kRows) sum += partial[split * size + element];
  }
  sums[row][threadIdx.x % kWarpSize] = sum;
  __syncthreads();
  if (row == 0 && element < size) {
    for (int other = 1; other < kRows; ++other) sum += sums[other][threadIdx.x];
    const Tensor<T, kNchw> order(dw_data, problem.group_c(), problem.r, problem.s);  // that of the workspace
    const Tensor<T, kLayout> dw(dw_data, problem.group_c(), problem.r, problem.s);
    const Place at = order.place(element);
    dw(at.outer, at.channel, at.row, at.column) = narrow<T>(sum);
  }
}

}  // namespace pyconv
