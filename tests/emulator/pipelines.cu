// Asynchronous copies used wrongly. A comment on a line names the kernel and what must be found there.
//
// All are launched with 4 blocks of 64 threads on x[1024] (read-only) and y[1024]. Each thread copies 4 elements per
// tile of 256, and reads elements that others have copied.
#include "common/cp_async.h"

namespace pyconv {

constexpr int kTile = 256;

// Two tiles, of which the second is under way while the first is summed.
__global__ void too_weak_a_wait(const float* x, float* y) {
  PYCONV_SHARED(float, tile, [2][kTile]);
  const int t = threadIdx.x;
  float sum = 0;
  cp_async<16>(&tile[0][4 * t], x + 4 * t);  // too_weak_a_wait: cp.async
  cp_async_commit();
  for (int i = 0; i < 3; ++i) {
    cp_async<16>(&tile[(i + 1) % 2][4 * t], x + (i + 1) * kTile + 4 * t);  // too_weak_a_wait: cp.async
    cp_async_commit();
    cp_async_wait<2>();  // one group too many may be under way
    __syncthreads();
    sum += tile[i % 2][255 - t];  // too_weak_a_wait: cp.async
    __syncthreads();
  }
  cp_async_wait<0>();
  y[blockIdx.x * 64 + t] = sum;
}

__global__ void wait_without_commit(const float* x, float* y) {
  PYCONV_SHARED(float, tile, [kTile]);
  const int t = threadIdx.x;
  cp_async<16>(&tile[4 * t], x + 4 * t);  // wait_without_commit: cp.async
  cp_async_wait<0>();
  y[blockIdx.x * 64 + t] = tile[4 * t];  // wait_without_commit: cp.async
}

// Waiting is for one's own copies: those of others need the barrier too.
__global__ void wait_without_barrier(const float* x, float* y) {
  PYCONV_SHARED(float, tile, [kTile]);
  const int t = threadIdx.x;
  cp_async<16>(&tile[4 * t], x + 4 * t);  // wait_without_barrier: race, cp.async
  cp_async_commit();
  cp_async_wait<0>();
  y[blockIdx.x * 64 + t] = tile[255 - 4 * t];  // wait_without_barrier: race, uninitialised, cp.async
}

__global__ void barrier_before_wait(const float* x, float* y) {
  PYCONV_SHARED(float, tile, [kTile]);
  const int t = threadIdx.x;
  cp_async<16>(&tile[4 * t], x + 4 * t);  // barrier_before_wait: race, cp.async
  cp_async_commit();
  __syncthreads();
  cp_async_wait<0>();
  y[blockIdx.x * 64 + t] = tile[255 - 4 * t];  // barrier_before_wait: race, cp.async
}

// The next tile is copied over one that other threads are still reading.
__global__ void copies_over_a_tile_in_use(const float* x, float* y) {
  PYCONV_SHARED(float, tile, [kTile]);
  const int t = threadIdx.x;
  float sum = 0;
  for (int i = 0; i < 4; ++i) {
    cp_async<16>(&tile[4 * t], x + i * kTile + 4 * t);  // copies_over_a_tile_in_use: race
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    sum += tile[255 - 4 * t];  // copies_over_a_tile_in_use: race
  }
  y[blockIdx.x * 64 + t] = sum;
}

__global__ void stores_into_a_copy(const float* x, float* y) {
  PYCONV_SHARED(float, tile, [kTile]);
  const int t = threadIdx.x;
  cp_async<16>(&tile[4 * t], x + 4 * t);  // stores_into_a_copy: cp.async
  cp_async_commit();
  tile[4 * t] = 0;  // stores_into_a_copy: cp.async
  cp_async_wait<0>();
  y[blockIdx.x * 64 + t] = tile[4 * t];
}

__global__ void never_waits(const float* x, float* y) {
  PYCONV_SHARED(float, tile, [kTile]);
  const int t = threadIdx.x;
  cp_async<16>(&tile[4 * t], x + 4 * t);  // never_waits: cp.async
  cp_async_commit();
  y[blockIdx.x * 64 + t] = x[t];
}

__global__ void copies_past_the_input(const float* x, float* y) {
  PYCONV_SHARED(float, tile, [kTile]);
  const int t = threadIdx.x, i = blockIdx.x * kTile + 4 * t;
  cp_async<16>(&tile[4 * t], x + i + 4);  // copies_past_the_input: out of bounds
  cp_async_commit();
  cp_async_wait<0>();
  y[blockIdx.x * 64 + t] = tile[4 * t];
}

__global__ void copies_misaligned(const float* x, float* y) {
  PYCONV_SHARED(float, tile, [kTile]);
  const int t = threadIdx.x;
  cp_async<16>(&tile[4 * t], x + 4 * t + 1);  // copies_misaligned: misaligned
  cp_async_commit();
  cp_async_wait<0>();
  y[blockIdx.x * 64 + t] = tile[4 * t];
}

}  // namespace pyconv
