// The last step of a product whose gemm_k is split (operands.h): the partial sums of every element, added up.
//
//   out[i] = sum over split of partial[split][i]
//
// Thread: one element, from the first split to the last, so the sum has one order however the blocks were timed.
#include "gemm/operands.h"

namespace pyconv {

template <class T, int kThreads>
__global__ void __launch_bounds__(kThreads)
    sum_splits(const Accumulator<T>* __restrict__ partial, T* __restrict__ out, int64_t elements, int32_t splits) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= elements) return;
  Accumulator<T> sum = partial[i];
  for (int split = 1; split < splits; ++split) sum += partial[split * elements + i];
  out[i] = narrow<T>(sum);
}

}  // namespace pyconv
