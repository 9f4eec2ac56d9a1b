// CUDA's built-in variables and functions in terms of the emulator's. Only what the kernels use: a name that is
// missing is a compile error, and is added here.
#pragma once

#define threadIdx (::pyconv::emulator::thread_index())
#define blockIdx (::pyconv::emulator::block_index())
#define blockDim (::pyconv::emulator::block_extent())
#define gridDim (::pyconv::emulator::grid_extent())

inline void __syncthreads(int line = __builtin_LINE()) { ::pyconv::emulator::sync_block(line); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { ::pyconv::emulator::sync_warp(mask); }
inline void __threadfence() {}  // memory is always coherent here
inline void __threadfence_block() {}
[[noreturn]] inline void __trap() { ::pyconv::emulator::fail("__trap()"); }

// ---- shuffles: `width` cuts the warp into segments, as on the GPU

template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int first = ::pyconv::emulator::lane() & -width;
  const ::pyconv::emulator::Exchange<T> warp(value, mask);
  return warp.of(first + (source & (width - 1)));
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  const int lane = ::pyconv::emulator::lane(), source = lane ^ lane_mask, last = lane | (width - 1);
  const ::pyconv::emulator::Exchange<T> warp(value, mask);
  return warp.of(source > last ? lane : source);  // an earlier segment may be read, a later one not
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = ::pyconv::emulator::lane(), source = lane + int(delta), last = lane | (width - 1);
  const ::pyconv::emulator::Exchange<T> warp(value, mask);
  return warp.of(source > last ? lane : source);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = ::pyconv::emulator::lane(), source = lane - int(delta), first = lane & -width;
  const ::pyconv::emulator::Exchange<T> warp(value, mask);
  return warp.of(source < first ? lane : source);
}

inline unsigned __ballot_sync(unsigned mask, int vote) { return ::pyconv::emulator::ballot(mask, vote != 0); }
inline int __any_sync(unsigned mask, int vote) { return ::pyconv::emulator::ballot(mask, vote != 0) != 0; }
inline int __all_sync(unsigned mask, int vote) { return ::pyconv::emulator::ballot(mask, vote == 0) == 0; }

// ---- atomics

template <class T>
inline T atomicAdd(T* at, T value) {
  return ::pyconv::emulator::atomic(::pyconv::emulator::Atomic::kAdd, at, value);
}
template <class T>
inline T atomicMin(T* at, T value) {
  return ::pyconv::emulator::atomic(::pyconv::emulator::Atomic::kMin, at, value);
}
template <class T>
inline T atomicMax(T* at, T value) {
  return ::pyconv::emulator::atomic(::pyconv::emulator::Atomic::kMax, at, value);
}
template <class T>
inline T atomicAnd(T* at, T value) {
  return ::pyconv::emulator::atomic(::pyconv::emulator::Atomic::kAnd, at, value);
}
template <class T>
inline T atomicOr(T* at, T value) {
  return ::pyconv::emulator::atomic(::pyconv::emulator::Atomic::kOr, at, value);
}
template <class T>
inline T atomicExch(T* at, T value) {
  return ::pyconv::emulator::atomic(::pyconv::emulator::Atomic::kExchange, at, value);
}
template <class T>
inline T atomicCAS(T* at, T expected, T value) {
  return ::pyconv::emulator::atomic(::pyconv::emulator::Atomic::kCompareAndSwap, at, value, expected);
}

// ---- loads and bits

template <class T>
inline T __ldg(const T* at) {
  return *at;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz(unsigned(bits)) : 32; }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline int __float_as_int(float value) { return int(__float_as_uint(value)); }
inline float __uint_as_float(unsigned bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}
inline float __int_as_float(int bits) { return __uint_as_float(unsigned(bits)); }

// ---- arithmetic and printf: CUDA has these without a header

extern "C" {
int printf(const char*, ...) __attribute__((format(printf, 1, 2)));
float fmaf(float, float, float) noexcept;
double fma(double, double, double) noexcept;
float fmaxf(float, float) noexcept;
double fmax(double, double) noexcept;
float fminf(float, float) noexcept;
double fmin(double, double) noexcept;
float fabsf(float) noexcept;
double fabs(double) noexcept;
float sqrtf(float) noexcept;
double sqrt(double) noexcept;
}
inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline bool isnan(float value) { return __builtin_isnan(value); }
inline bool isnan(double value) { return __builtin_isnan(value); }
inline bool isinf(float value) { return __builtin_isinf(value); }
inline bool isinf(double value) { return __builtin_isinf(value); }

#define PYCONV_EMULATED_MIN_MAX(type)                                 \
  inline constexpr type min(type a, type b) { return b < a ? b : a; } \
  inline constexpr type max(type a, type b) { return a < b ? b : a; }
PYCONV_EMULATED_MIN_MAX(int)
PYCONV_EMULATED_MIN_MAX(unsigned)
PYCONV_EMULATED_MIN_MAX(long)
PYCONV_EMULATED_MIN_MAX(unsigned long)
PYCONV_EMULATED_MIN_MAX(long long)
PYCONV_EMULATED_MIN_MAX(unsigned long long)
#undef PYCONV_EMULATED_MIN_MAX
inline float min(float a, float b) { return __builtin_fminf(a, b); }
inline float max(float a, float b) { return __builtin_fmaxf(a, b); }
inline double min(double a, double b) { return __builtin_fmin(a, b); }
inline double max(double a, double b) { return __builtin_fmax(a, b); }
