// Kernels that touch what they may not. A comment on a line names the kernel and what must be found there.
//
// All are launched with 4 blocks of 64 threads on x[1024] (read-only) and y[1024].
#include "common/vector.h"

namespace pyconv {

__global__ void past_a_shared_array(const float* x, float* y) {
  PYCONV_SHARED(float, tile, [64]);
  PYCONV_SHARED(float, other, [64]);
  const int t = threadIdx.x;
  float* flat = tile;
  flat[t + 1] = x[t];  // past_a_shared_array: out of bounds
  other[t] = x[t];
  __syncthreads();
  y[blockIdx.x * 64 + t] = tile[t] + other[t];
}

__global__ void before_a_shared_array(const float* x, float* y) {
  PYCONV_SHARED(float, tile, [64]);
  const int t = threadIdx.x;
  tile[t] = x[t];
  __syncthreads();
  const float* flat = tile;
  y[blockIdx.x * 64 + t] = flat[t - 1];  // before_a_shared_array: out of bounds
}

// Inside the array, but past the end of its row.
__global__ void past_a_row(const float* x, float* y) {
  PYCONV_SHARED(float, tile, [8][8]);
  const int t = threadIdx.x;
  tile[t / 8][t % 8] = x[t];
  __syncthreads();
  y[blockIdx.x * 64 + t] = t < 56 ? tile[t / 8][t % 8 + 1] : 0;  // past_a_row: out of bounds
}

__global__ void past_a_local_array(const float* x, float* y) {
  float sums[4] = {};
  for (int i = 0; i < 8; ++i) sums[x[i] >= 0 ? i : 0] += x[i];  // past_a_local_array: out of bounds
  y[blockIdx.x * 64 + threadIdx.x] = sums[threadIdx.x % 4];
}

__global__ void past_dynamic_memory(const float* x, float* y) {
  PYCONV_DYNAMIC_SHARED(float, tile);
  const int t = threadIdx.x;
  tile[t] = x[t];  // past_dynamic_memory: out of bounds
  __syncthreads();
  y[blockIdx.x * 64 + t] = tile[t];
}

__global__ void reads_past_the_input(const float* x, float* y) {
  const int i = blockIdx.x * 64 + threadIdx.x;
  y[i] = x[4 * i + 1] + x[4 * i + 4];  // reads_past_the_input: out of bounds
}

__global__ void writes_past_the_output(const float* x, float* y) {
  const int i = blockIdx.x * 64 + threadIdx.x;
  y[4 * i + 4] = x[i];  // writes_past_the_output: out of bounds
}

__global__ void wild(const float* x, float* y) {
  const int i = blockIdx.x * 64 + threadIdx.x;
  y[i] = x[i + (1ll << 40)];  // wild: out of bounds
}

__global__ void writes_an_input(const float* x, float* y) {
  const int i = blockIdx.x * 64 + threadIdx.x;
  y[i] = x[i];
  const_cast<float*>(x)[i] = 0;  // writes_an_input: read-only
}

__global__ void reads_unset_shared(const float* x, float* y) {
  PYCONV_SHARED(float, tile, [64]);
  const int t = threadIdx.x;
  if (t != 13) tile[t] = x[t];
  __syncthreads();
  y[blockIdx.x * 64 + t] = tile[t];  // reads_unset_shared: uninitialised
}

// Not found, but poisoned: see test_a_local_variable_that_is_not_set_is_no_number_in_use.
__global__ void unset_local(const float* x, float* y) {
  const int i = blockIdx.x * 64 + threadIdx.x;
  float sums[4];
  for (int j = 0; j < 8; ++j) sums[j % 4] += x[i];
  y[i] = sums[0] + sums[1] + sums[2] + sums[3];
}

__global__ void adds_to_the_output(const float* x, float* y) {
  const int i = blockIdx.x * 64 + threadIdx.x;
  y[i] += x[i];  // adds_to_the_output: uninitialised
}

__global__ void misaligned_vector(const float* x, float* y) {
  const int i = blockIdx.x * 64 + threadIdx.x;
  const Vector<float, 4> four = load_vector<4>(x + i);  // misaligned_vector: misaligned
  y[i] = four.element[0];
}

__global__ void divides_by_zero(const int* x, int* y) {
  const int i = blockIdx.x * 64 + threadIdx.x;
  y[i] = 64 / x[i];  // divides_by_zero: arithmetic
}

__global__ void too_much_shared(const float* x, float* y) {
  PYCONV_SHARED(float, first, [64]);
  PYCONV_SHARED(float, second, [12 * 1024]);  // too_much_shared: shared memory
  first[threadIdx.x] = second[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = first[threadIdx.x];
}

__global__ void deep_stack(const float* x, float* y) {  // deep_stack: stack
  volatile float local[128 * 1024];
  local[threadIdx.x] = x[threadIdx.x];
  y[blockIdx.x * 64 + threadIdx.x] = local[threadIdx.x];
}

}  // namespace pyconv
