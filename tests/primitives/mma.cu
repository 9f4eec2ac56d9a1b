// mma.sync on its own: registers in, registers out. Which element a register holds is for the test to say, from
// the tables of the PTX ISA: the kernels do not know.
#include "common/mma.h"

namespace pyconv {

// a[32][4], b[32][2], d[32][4]
template <bool IS_BFLOAT16>
__global__ void __launch_bounds__(32) mma_16_bit(const uint32_t* a, const uint32_t* b, float* d) {
  const int lane = int(threadIdx.x);
  uint32_t of_a[4], of_b[2];
  float sums[4];
  for (int i = 0; i < 4; ++i) of_a[i] = a[lane * 4 + i];
  for (int i = 0; i < 2; ++i) of_b[i] = b[lane * 2 + i];
  for (int i = 0; i < 4; ++i) sums[i] = d[lane * 4 + i];
  if constexpr (IS_BFLOAT16)
    mma_m16n8k16_bf16(sums, of_a, of_b);
  else
    mma_m16n8k16_f16(sums, of_a, of_b);
  for (int i = 0; i < 4; ++i) d[lane * 4 + i] = sums[i];
}

// a[32][4], b[32][2] are floats, which are rounded to tf32 here; d[32][4]
__global__ void __launch_bounds__(32) mma_tf32(const float* a, const float* b, float* d) {
  const int lane = int(threadIdx.x);
  uint32_t of_a[4], of_b[2];
  float sums[4];
  for (int i = 0; i < 4; ++i) of_a[i] = round_to_tf32(a[lane * 4 + i]);
  for (int i = 0; i < 2; ++i) of_b[i] = round_to_tf32(b[lane * 2 + i]);
  for (int i = 0; i < 4; ++i) sums[i] = d[lane * 4 + i];
  mma_m16n8k8_tf32(sums, of_a, of_b);
  for (int i = 0; i < 4; ++i) d[lane * 4 + i] = sums[i];
}

// a[32], b[32], d[32][2]
__global__ void __launch_bounds__(32) mma_f64(const double* a, const double* b, double* d) {
  const int lane = int(threadIdx.x);
  double sums[2] = {d[lane * 2], d[lane * 2 + 1]};
  mma_m8n8k4_f64(sums, a[lane], b[lane]);
  for (int i = 0; i < 2; ++i) d[lane * 2 + i] = sums[i];
}

// y[i] = x[i] rounded to tf32
__global__ void __launch_bounds__(32) tf32_of_float(const float* x, uint32_t* y, int count) {
  for (int i = int(threadIdx.x); i < count; i += 32) y[i] = round_to_tf32(x[i]);
}

}  // namespace pyconv
