// Kernels whose threads fail to meet. A comment on a line names the kernel and what must be found there.
//
// All are launched with 4 blocks of 64 threads on x[1024] (read-only) and y[1024].
#include "common/warp.h"

namespace pyconv {

__global__ void early_return(const float* x, float* y) {
  const int i = blockIdx.x * 64 + threadIdx.x;
  if (i >= 250) return;
  y[i] = x[i];
  __syncthreads();  // early_return: barrier
  y[512 + i] = y[i];
}

__global__ void barrier_in_a_branch(const float* x, float* y) {
  const int i = blockIdx.x * 64 + threadIdx.x;
  if (threadIdx.x < 32) {
    y[i] = x[i];
    __syncthreads();  // barrier_in_a_branch: divergent barrier
  } else {
    y[i] = -x[i];
    __syncthreads();  // barrier_in_a_branch: divergent barrier
  }
}

__global__ void lane_outside_its_mask(const float* x, float* y) {
  const int i = blockIdx.x * 64 + threadIdx.x;
  y[i] = x[i];
  __syncwarp(0x7fffffffu);  // lane_outside_its_mask: warp mask
}

__global__ void two_masks(const float* x, float* y) {
  const int i = blockIdx.x * 64 + threadIdx.x;
  const unsigned mask = threadIdx.x % 2 ? 0xffffffffu : 0x55555555u;
  y[i] = __shfl_sync(mask, x[i], 0);  // two_masks: warp mask
}

__global__ void shuffle_in_a_branch(const float* x, float* y) {
  const int i = blockIdx.x * 64 + threadIdx.x;
  float sum = x[i];
  if (threadIdx.x % 32 < 16) sum = warp_sum(sum);  // shuffle_in_a_branch: deadlock
  __syncthreads();                                 // shuffle_in_a_branch: deadlock
  y[i] = sum;
}

__global__ void reads_an_absent_lane(const float* x, float* y) {
  const int i = blockIdx.x * 64 + threadIdx.x;
  float value = x[i];
  if (threadIdx.x % 32 < 16) value = __shfl_sync(0x0000ffffu, value, 20);  // reads_an_absent_lane: warp mask
  y[i] = value;
}

__global__ void traps(const float* x, float* y) {
  const int i = blockIdx.x * 64 + threadIdx.x;
  y[i] = x[i];
  if (i == 100) __trap();  // traps: failed
}

}  // namespace pyconv
