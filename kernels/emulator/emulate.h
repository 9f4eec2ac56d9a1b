// What a CUDA source sees when a plain C++ compiler builds it for the CPU (PYCONV_EMULATED): the CUDA names, and
// the emulator's own functions that the primitives of kernels/common/ stand on. The functions live in the runtime
// library (README.md beside this file); nothing here needs a CUDA installation or the C++ library, so that one
// instantiation compiles in a fraction of a second.
//
// The checked build (PYCONV_EMULATOR_CHECKED) has a hook before every load and store of the kernel.
#pragma once

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static_assert(false, "say PYCONV_SHARED(type, name, [dims])");

// For host models of instructions (mma, ldmatrix) in kernels/common/: no hooks inside, so that reading what other
// lanes published costs nothing. What such a model reads or writes for a lane it reports by touch().
#define PYCONV_EMULATED_MODEL __attribute__((noinline, no_sanitize("thread", "undefined")))

struct uint3 {
  unsigned x, y, z;
};
typedef uint3 dim3;

namespace pyconv {
namespace emulator {

constexpr unsigned kFullMask = 0xffffffffu;

// Constant for the thread that asks, so the compiler may ask once.
__attribute__((const)) uint3 thread_index() noexcept;
__attribute__((const)) uint3 block_index() noexcept;
__attribute__((const)) uint3 block_extent() noexcept;
__attribute__((const)) uint3 grid_extent() noexcept;
__attribute__((const)) int lane() noexcept;  // 0..31, of this thread in its warp

void sync_block(int line);  // of the source: tells barriers apart when the compiler has merged their code
void sync_warp(unsigned mask);

// ---- shared memory

// The shared array that stands at `key` in the source; it is 0xFF everywhere when the block starts.
void* shared(const void* key, unsigned long bytes, unsigned long align, const char* name);
void* dynamic_shared();  // aligned to 128 bytes

// ---- checks that primitives ask for

// An access of an instruction that a primitive plays: checked like one that the kernel's source makes.
// Nothing in the plain build.
void touch(const void* at, int bytes, bool is_write);
[[noreturn]] void misaligned(const void* at, int bytes);
inline void check_aligned(const void* at, int bytes) {
  if (reinterpret_cast<unsigned long>(at) & (bytes - 1)) misaligned(at, bytes);
}
// The thread has done what no kernel may do; ends the launch with this message.
[[noreturn]] void fail(const char* message);

// ---- cp.async: copies that are played when they are waited for, not when they are issued

// bytes: 4, 8 or 16. The first valid_bytes come from `global`, the rest are zeros.
void cp_async(void* shared, const void* global, int bytes, int valid_bytes);
void cp_async_commit();
void cp_async_wait(int groups);  // until at most this many of the newest groups are pending

// ---- warp collectives
//
//   Exchange<Fragment> warp(mine);      // every lane of the mask arrives with its value
//   ... warp.of(lane) ...               // reads any lane's
//
// A value has at most 64 bytes. It must be read before the Exchange is destroyed.
void publish(const void* value, int bytes, unsigned mask);  // waits for the other lanes of the mask
const void* published(int lane);                            // fails for a lane that did not take part
void finish_reading(unsigned mask);

template <class T>
class Exchange {
 public:
  explicit Exchange(const T& mine, unsigned mask = kFullMask) : mask_(mask) {
    static_assert(sizeof(T) <= 64, "a lane publishes at most 64 bytes");
    publish(&mine, sizeof(T), mask);
  }
  ~Exchange() { finish_reading(mask_); }
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;

  const T& of(int lane) const { return *static_cast<const T*>(published(lane)); }

 private:
  unsigned mask_;
};

unsigned ballot(unsigned mask, bool vote);

// ---- atomics on integers; floats have none here, as no kernel of this project adds them in an order of chance

enum class Atomic { kAdd, kMin, kMax, kAnd, kOr, kExchange, kCompareAndSwap };
// `at` has 4 or 8 bytes; kCompareAndSwap stores `value` if `expected` is there. Returns what was there.
unsigned long long atomic(Atomic operation, void* at, int bytes, bool is_signed, unsigned long long value,
                          unsigned long long expected);

template <class T>
inline T atomic(Atomic operation, T* at, T value, T expected = 0) {
  static_assert(T(1) / 2 == 0 && (sizeof(T) == 4 || sizeof(T) == 8), "atomics on 32-bit and 64-bit integers only");
  return T(atomic(operation, at, int(sizeof(T)), T(-1) < T(0), (unsigned long long)value,
                  (unsigned long long)expected));
}

// ---- how the runtime calls an instantiated kernel: cuLaunchKernel's pointers to parameters

struct Signature {
  int count;
  int bytes[32];  // of each parameter
};

template <class... P>
constexpr Signature signature(void (*)(P...)) {
  static_assert(sizeof...(P) <= 32, "Signature has room for 32 parameters");
  return {int(sizeof...(P)), {int(sizeof(P))...}};
}

template <int... I>
struct Indices {};
template <int N, int... I>
struct FirstIndices : FirstIndices<N - 1, N - 1, I...> {};
template <int... I>
struct FirstIndices<0, I...> {
  typedef Indices<I...> type;
};

template <class... P, int... I>
inline void call(void (*kernel)(P...), void** parameters, Indices<I...>) {
  kernel(*static_cast<P*>(parameters[I])...);
}
template <class... P>
inline void call(void (*kernel)(P...), void** parameters) {
  call(kernel, parameters, typename FirstIndices<sizeof...(P)>::type());
}

}  // namespace emulator
}  // namespace pyconv

#ifndef PYCONV_EMULATOR_RUNTIME
#include "emulator/cuda_names.h"
#endif
