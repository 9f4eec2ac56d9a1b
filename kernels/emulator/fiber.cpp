#include "emulator/fiber.h"

namespace pyconv {
namespace emulator {

#ifdef PYCONV_EMULATOR_UCONTEXT

void prepare(Fiber& fiber, char* stack, size_t bytes, void (*main)()) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack;
  fiber.context.uc_stack.ss_size = bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, main, 0);
}

void switch_fiber(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

#else

// Saves the registers that a call preserves (System V ABI) on the old stack and takes them from the new one. The
// last step is a jump, not a return: it goes elsewhere than the call came from, which the return predictor always
// misses.
extern "C" void pyconv_emulator_switch(void** save, void* resume);
asm(R"(
.text
.globl pyconv_emulator_switch
.hidden pyconv_emulator_switch
.type pyconv_emulator_switch, @function
pyconv_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmpq *%rcx
.size pyconv_emulator_switch, .-pyconv_emulator_switch
)");

void prepare(Fiber& fiber, char* stack, size_t bytes, void (*main)()) {
  void** top = reinterpret_cast<void**>(stack + bytes);  // a multiple of 16
  *--top = nullptr;                                      // where main() would return to; also aligns its frame
  *--top = reinterpret_cast<void*>(main);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  fiber.stack_pointer = top;
}

void switch_fiber(Fiber& from, Fiber& to) { pyconv_emulator_switch(&from.stack_pointer, to.stack_pointer); }

#endif

}  // namespace emulator
}  // namespace pyconv
