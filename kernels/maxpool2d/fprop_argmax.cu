// Max-pooling forward with its argmax: y[n,c,p,q] = max over r,s of x[n,c,h,w], and the place (int32_t) or the tap
// (uint8_t) of the winner. The design is in fprop.cuh.
#include "maxpool2d/fprop.cuh"

namespace pyconv {

template <class T, int kLayout, int kThreads, int kElements, int kR, int kS, int kStride, int kOutputs, int kBegin,
          class Place>
__global__ void __launch_bounds__(kThreads, kBlocks<kThreads>)
    fprop_argmax_window(const T* __restrict__ x, T* __restrict__ y, Place* __restrict__ argmax,
                        Pool2dProblem problem, Items items) {
  fprop_window_tile<T, kLayout, kThreads, kElements, kR, kS, kStride, kOutputs, kBegin>(problem, items, x, y,
                                                                                        argmax);
}

template <class T, int kLayout, int kThreads, int kElements, class Place>
__global__ void __launch_bounds__(kThreads, kBlocks<kThreads>)
    fprop_argmax_any(const T* __restrict__ x, T* __restrict__ y, Place* __restrict__ argmax, Pool2dProblem problem,
                     Items items) {
  fprop_any_tile<T, kLayout, kThreads, kElements>(problem, items, x, y, argmax);
}

}  // namespace pyconv
