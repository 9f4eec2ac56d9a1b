// Shuffles and votes on their own: one warp.
#include "common/warp.h"

namespace pyconv {

// y[lane] = the sum over the lane's group of LANES
template <class T, int LANES>
__global__ void __launch_bounds__(32) warp_sums(const T* x, T* y) {
  const int lane = int(threadIdx.x);
  y[lane] = warp_sum<LANES>(x[lane]);
}

// y[lane][2]: the lanes where x is positive, and whether there is one
__global__ void __launch_bounds__(32) warp_votes(const float* x, uint32_t* y) {
  const int lane = int(threadIdx.x);
  y[lane * 2] = warp_ballot(x[lane] > 0);
  y[lane * 2 + 1] = warp_any(x[lane] > 0);
}

}  // namespace pyconv
