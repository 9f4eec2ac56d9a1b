// Kernels for the tests of backend cuda: they show what arrived, and nothing else.
#include "common/numbers.h"

namespace pyconv {

// scaled = x * factor + offset; a step of its own, so that a program has two and a workspace between them.
template <class T>
__global__ void probe_scale(const T* x, T* scaled, int64_t size, double factor, int32_t offset) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < size) scaled[i] = narrow<T>(Accumulator<T>(widen(x[i]) * factor + offset));
}

// y = scaled + n of the problem, through dynamic shared memory.
template <class T>
__global__ void probe_add(Pool2dProblem problem, const T* scaled, T* y) {
  PYCONV_DYNAMIC_SHARED(T, tile);
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < problem.y_size()) tile[threadIdx.x] = scaled[i];
  __syncthreads();
  if (i < problem.y_size()) y[i] = narrow<T>(Accumulator<T>(widen(tile[threadIdx.x]) + problem.n));
}

// y[i] = whether a bias was given.
__global__ void probe_bias(const float* bias, float* y) { y[threadIdx.x] = bias ? bias[0] : -1.0f; }

// Writes one element beyond y: the emulator's checked build finds it.
__global__ void probe_overrun(float* y, int64_t size) { y[size] = 1.0f; }

}  // namespace pyconv
