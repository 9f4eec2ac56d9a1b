// The ground of every CUDA kernel: what one `.cu` source needs to be compiled by NVRTC or nvcc for a GPU, and by
// a plain C++ compiler for the emulator (PYCONV_EMULATED), where the threads of a block are fibers.
//
// A source says __global__, threadIdx, __syncthreads() and so on as usual. It includes no header but ours: NVRTC
// then needs no CUDA installation, and the emulator no CUDA headers.
#pragma once

#if defined(PYCONV_EMULATED)
#include "emulator/emulate.h"
#endif
#include "common/problem.h"

#if defined(PYCONV_EMULATED)

#define PYCONV_DEVICE static inline
#define PYCONV_DEVICE_MEMBER inline

// In the emulator a shared array is found by its place in the source, and lies between guard zones.
#define PYCONV_SHARED(type, name, ...)                                       \
  static const char name##_key = 0;                                          \
  typedef type name##_type __VA_ARGS__;                                      \
  name##_type& name = *static_cast<name##_type*>(::pyconv::emulator::shared( \
      &name##_key, sizeof(name##_type), alignof(name##_type) < 16 ? 16 : alignof(name##_type), #name))
#define PYCONV_DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(::pyconv::emulator::dynamic_shared())
#define PYCONV_UNROLL
#define PYCONV_UNROLL_BY(count)

#else  // NVRTC or nvcc

#ifndef __CUDACC_RTC__
#include <cstdint>
#else
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
#endif

#define PYCONV_DEVICE static __device__ __forceinline__
#define PYCONV_DEVICE_MEMBER __device__ __forceinline__  // of a member that is not static

// PYCONV_SHARED(float, tile, [BM][BK + 1]); declares `__shared__ float tile[BM][BK + 1]`, aligned to 16 bytes so that
// vectors can be moved in and out of it.
#define PYCONV_SHARED(type, name, ...) alignas(16) alignas(type) __shared__ type name __VA_ARGS__
// Shared memory whose size the launch gives (Step.shared_bytes); a block may have more than 48 KB only this way.
#define PYCONV_DYNAMIC_SHARED(type, name)                        \
  extern __shared__ __align__(128) unsigned char name##_bytes[]; \
  type* name = reinterpret_cast<type*>(name##_bytes)
#define PYCONV_UNROLL _Pragma("unroll")
#define PYCONV_PRAGMA(text) _Pragma(#text)
#define PYCONV_UNROLL_BY(count) PYCONV_PRAGMA(unroll count)  // a constant expression; 1 keeps the loop

#endif

namespace pyconv {

constexpr int kWarpSize = 32;

PYCONV_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace pyconv
