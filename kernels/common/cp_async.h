// Asynchronous copies from global to shared memory (sm_80): the data passes no register, and the thread goes on
// while it is under way. That is what makes a pipeline of tiles possible: the copies of tile i + 2 run while tile
// i is multiplied.
//
//   cp_async<16>(to, from, valid)   each thread starts copies of 4, 8 or 16 bytes...
//   cp_async_commit()               ...and closes a group of them (an empty group counts too);
//   cp_async_wait<N>()              waits until at most N of this thread's newest groups are under way.
//   __syncthreads()                 only now are the copies of *other* threads visible.
//
//   groups of a thread, oldest first:   g0 g1 g2 g3
//   after cp_async_wait<1>():           g0, g1, g2 have arrived, g3 perhaps
//
// Ragged edges: the first `valid_bytes` are copied and the rest of the piece is filled with zeros. With 0 nothing
// is read, so the address may be anywhere, but it must be aligned.
//
//   cp_async<16>(shared, global, 6)       global  a b c d e f g h i j k l m n o p
//                                         shared  a b c d e f 0 0 0 0 0 0 0 0 0 0
//
// Both addresses must be aligned to BYTES. 16 bytes go past L1 (.cg: a tile is read once by its block, and L2
// serves the other blocks); 4 and 8 bytes can only go through it (.ca). They cost four and two times the
// instructions.
#pragma once
#include "common/cuda.h"

namespace pyconv {

#if !defined(PYCONV_EMULATED)
// The address of `pointer` in the shared window: what ld.shared, ldmatrix and cp.async take.
PYCONV_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
#endif

template <int BYTES>
PYCONV_DEVICE void cp_async(void* shared, const void* global, int valid_bytes = BYTES) {
  static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async copies 4, 8 or 16 bytes");
#if defined(PYCONV_EMULATED)
  ::pyconv::emulator::cp_async(shared, global, BYTES, valid_bytes);
#else
  if constexpr (BYTES == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(shared)), "l"(global), "r"(valid_bytes)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                 :
                 : "r"(shared_address(shared)), "l"(global), "n"(BYTES), "r"(valid_bytes)
                 : "memory");
#endif
}

PYCONV_DEVICE void cp_async_commit() {
#if defined(PYCONV_EMULATED)
  ::pyconv::emulator::cp_async_commit();
#else
  asm volatile("cp.async.commit_group;" : : : "memory");
#endif
}

template <int GROUPS>
PYCONV_DEVICE void cp_async_wait() {
#if defined(PYCONV_EMULATED)
  ::pyconv::emulator::cp_async_wait(GROUPS);
#else
  asm volatile("cp.async.wait_group %0;" : : "n"(GROUPS) : "memory");
#endif
}

}  // namespace pyconv
