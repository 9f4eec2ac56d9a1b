// Kernels that the gates must refuse, one fault each, and one that they must pass.
namespace pyconv {

// Adds to places of a local array that are known only when running: the array lies in local memory.
template <int BINS>
__global__ void __launch_bounds__(128) indexes_locally(const int* bins, float* y) {
  float sums[BINS] = {};
  for (int i = 0; i < BINS; ++i) sums[bins[i + threadIdx.x] % BINS] += float(i);
  for (int i = 0; i < BINS; ++i) y[i * 128 + threadIdx.x] = sums[i];
}

// Keeps 64 values alive in the 32 registers that two blocks of 1024 threads leave each thread.
__global__ void __launch_bounds__(1024, 2) spills(const float* x, float* y, int steps) {
  float value[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) value[i] = x[i * 1024 + threadIdx.x];
  for (int step = 0; step < steps; ++step) {
#pragma unroll
    for (int i = 0; i < 64; ++i) value[i] = value[i] * value[(i + 17) % 64] + float(step);
  }
#pragma unroll
  for (int i = 0; i < 64; ++i) y[i * 1024 + threadIdx.x] = value[i];
}

__global__ void __launch_bounds__(128) adds_atomically(const float* x, float* y) { atomicAdd(y, x[threadIdx.x]); }

// The same with another instruction: a double in shared memory is added by compare-and-swap.
__global__ void __launch_bounds__(128) adds_by_swaps(const double* x, double* y) {
  __shared__ double sum;
  if (threadIdx.x == 0) sum = 0;
  __syncthreads();
  atomicAdd(&sum, x[threadIdx.x]);
  __syncthreads();
  y[threadIdx.x] = sum;
}

// Whole numbers add up to the same in any order.
__global__ void __launch_bounds__(128) counts_atomically(int* count) { atomicAdd(count, 1); }

// A product of matrices on the tensor cores, or (TENSOR = false) what was meant to be one.
template <bool TENSOR>
__global__ void __launch_bounds__(32) multiplies(const unsigned* a, const unsigned* b, float* c) {
  const int lane = threadIdx.x;
  float sum[4] = {};
  if constexpr (TENSOR) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[lane]), "r"(a[lane + 32]), "r"(a[lane + 64]), "r"(a[lane + 96]), "r"(b[lane]), "r"(b[lane + 32]));
  } else {
    for (int i = 0; i < 4; ++i) sum[i] += __uint_as_float(a[lane + 32 * i]) * __uint_as_float(b[lane]);
  }
  for (int i = 0; i < 4; ++i) c[lane + 32 * i] = sum[i];
}

// Moves N floats a thread.
template <int N>
__global__ void __launch_bounds__(128) copies(const float* x, float* y) {
  struct alignas(4 * N) Elements {
    float element[N];
  };
  reinterpret_cast<Elements*>(y)[threadIdx.x] = reinterpret_cast<const Elements*>(x)[threadIdx.x];
}

__global__ void __launch_bounds__(128) takes_a_long(float* y, long long size) {
  if (threadIdx.x < size) y[threadIdx.x] = 0;
}

}  // namespace pyconv
