// Max-pooling forward, values only: y[n,c,p,q] = max over r,s of x[n,c,h,w]. The design is in fprop.cuh.
#include "maxpool2d/fprop.cuh"

namespace pyconv {

template <class T, int kLayout, int kThreads, int kElements, int kR, int kS, int kStride, int kOutputs, int kBegin>
__global__ void __launch_bounds__(kThreads, kBlocks<kThreads>)
    fprop_window(const T* __restrict__ x, T* __restrict__ y, Pool2dProblem problem, Items items) {
  fprop_window_tile<T, kLayout, kThreads, kElements, kR, kS, kStride, kOutputs, kBegin, NoPlace>(problem, items, x,
                                                                                                 y, nullptr);
}

template <class T, int kLayout, int kThreads, int kElements>
__global__ void __launch_bounds__(kThreads, kBlocks<kThreads>)
    fprop_any(const T* __restrict__ x, T* __restrict__ y, Pool2dProblem problem, Items items) {
  fprop_any_tile<T, kLayout, kThreads, kElements, NoPlace>(problem, items, x, y, nullptr);
}

}  // namespace pyconv
