// Fibers: a CUDA thread is a stack of its own, and a switch between two costs a few nanoseconds.
#pragma once
#include <cstddef>

#if !defined(__x86_64__) && !defined(PYCONV_EMULATOR_UCONTEXT)
#define PYCONV_EMULATOR_UCONTEXT  // portable, but each switch is a system call
#endif
#ifdef PYCONV_EMULATOR_UCONTEXT
#include <ucontext.h>
#endif

namespace pyconv {
namespace emulator {

struct Fiber {
#ifdef PYCONV_EMULATOR_UCONTEXT
  ucontext_t context;
#else
  void* stack_pointer = nullptr;
#endif
};

// Makes `fiber` start at main() on this stack when it is switched to. main() must never return.
void prepare(Fiber& fiber, char* stack, size_t bytes, void (*main)());
// Goes on in `to`; returns when another fiber switches back to `from`.
void switch_fiber(Fiber& from, Fiber& to);

}  // namespace emulator
}  // namespace pyconv
