// Kernels whose accesses race. A comment on a line names the kernel and what must be found there; where it is two
// accesses that race, both lines carry it, and which of them comes second depends on the order of threads.
//
// All are launched with 4 blocks of 64 threads on x[1024] (read-only) and y[1024].
#include "common/cuda.h"

namespace pyconv {

__global__ void no_barrier(const float* x, float* y) {
  PYCONV_SHARED(float, tile, [64]);
  const int t = threadIdx.x;
  tile[t] = x[t];                                // no_barrier: race
  y[blockIdx.x * 64 + t] = tile[(t + 33) % 64];  // no_barrier: race, uninitialised
}

// The barrier after filling is there; the one before the next round overwrites what others still read is not.
__global__ void one_barrier_in_a_loop(const float* x, float* y) {
  PYCONV_SHARED(float, tile, [64]);
  const int t = threadIdx.x;
  float sum = 0;
  for (int round = 0; round < 3; ++round) {
    tile[t] = x[round * 64 + t];  // one_barrier_in_a_loop: race
    __syncthreads();
    sum += tile[63 - t];  // one_barrier_in_a_loop: race
  }
  y[blockIdx.x * 64 + t] = sum;
}

__global__ void two_writers(const float* x, float* y) {
  PYCONV_SHARED(float, tile, [32]);
  const int t = threadIdx.x;
  tile[t / 2] = x[t];  // two_writers: race
  __syncthreads();
  y[blockIdx.x * 64 + t] = tile[t / 2];
}

// Within a warp, too, lanes have no order: to rely on lockstep is wrong since sm_70.
__global__ void lockstep(const float* x, float* y) {
  PYCONV_SHARED(float, tile, [64]);
  const int t = threadIdx.x, lane = t % kWarpSize;
  tile[t] = x[t];                                             // lockstep: race
  y[blockIdx.x * 64 + t] = tile[t - lane + (lane + 1) % 32];  // lockstep: race, uninitialised
}

// Lanes 0 to 15 have met, but not with the other half of their warp.
__global__ void half_a_warp(const float* x, float* y) {
  PYCONV_SHARED(float, tile, [64]);
  const int t = threadIdx.x, lane = t % kWarpSize;
  tile[t] = x[t];  // half_a_warp: race
  __syncwarp(lane < 16 ? 0x0000ffffu : 0xffff0000u);
  y[blockIdx.x * 64 + t] = tile[t ^ 16];  // half_a_warp: race, uninitialised
}

__global__ void blocks_write_one_sum(const float* x, float* y) {
  if (threadIdx.x == 0) y[7] = x[blockIdx.x];  // blocks_write_one_sum: race
}

__global__ void block_reads_its_neighbour(const float* x, float* y) {
  const int i = blockIdx.x * 64 + threadIdx.x;
  y[i] = x[i];             // block_reads_its_neighbour: race
  y[512 + i] = y[i ^ 64];  // block_reads_its_neighbour: race, uninitialised
}

__global__ void global_without_barrier(const float* x, float* y) {
  const int first = blockIdx.x * 64, t = threadIdx.x;
  y[first + t] = x[t];                     // global_without_barrier: race
  y[512 + first + t] = y[first + 63 - t];  // global_without_barrier: race, uninitialised
}

__global__ void atomic_and_plain(const int* x, int* y) {
  PYCONV_SHARED(int, count, [1]);
  if (threadIdx.x == 0) count[0] = 0;
  __syncthreads();
  atomicAdd(&count[0], x[threadIdx.x]);         // atomic_and_plain: race
  y[blockIdx.x * 64 + threadIdx.x] = count[0];  // atomic_and_plain: race
}

}  // namespace pyconv
