// A kernel that faults (a wild address in the plain build, a stack that is too small) ends its launch with a finding,
// not the process: the fault's handler jumps out of the fiber, back to the launch. So does Ctrl-C, for a kernel that
// hangs: its finding tells where.
#include "emulator/faults.h"

#include <pthread.h>
#include <signal.h>
#include <ucontext.h>

#include <cstring>

#include "emulator/runtime.h"

namespace pyconv {
namespace emulator {

static constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGINT};
static constexpr int kCount = sizeof kSignals / sizeof kSignals[0];
static struct sigaction before[kCount];
static stack_t stack_before;
static pthread_t owner;
sigjmp_buf after_fault;

static const char* place_of_fault(void* context) {
  const mcontext_t& machine = static_cast<ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
  return reinterpret_cast<const char*>(machine.gregs[REG_RIP]) + 1;  // as if it were a return address
#elif defined(__aarch64__)
  return reinterpret_cast<const char*>(machine.pc) + 1;
#else
  (void)machine;
  return nullptr;
#endif
}

static void handle(int signal, siginfo_t* info, void* context) {
  if (!current || !pthread_equal(owner, pthread_self())) {  // not ours: as if we were not here
    restore_fault_handlers();
    if (signal == SIGINT) raise(signal);  // the others come again by themselves
    return;
  }
  const char* const where = place_of_fault(context);
  const char* const address = static_cast<const char*>(info->si_addr);
  if (signal == SIGFPE) {
    find("arithmetic", where, nullptr, "an integer division by zero");
  } else if (signal == SIGINT) {
    find("interrupted", where, nullptr, "the kernel was running");
  } else if (signal == SIGSEGV && size_t(address - current->stack) < kStackBytes) {
    find("stack", where, nullptr, "the thread's local variables and calls need more than %zu bytes", kStackBytes);
  } else {
    find("fault", where, nullptr, "%s at address %p", strsignal(signal), static_cast<const void*>(address));
  }
  current = nullptr;
  launch.abandoned = true;
  siglongjmp(after_fault, 1);
}

void install_fault_handlers() {
  static char stack[64 * 1024];
  stack_t own = {};
  own.ss_sp = stack, own.ss_size = sizeof stack;
  sigaltstack(&own, &stack_before);
  owner = pthread_self();
  struct sigaction action = {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  for (int i = 0; i < kCount; ++i) sigaction(kSignals[i], &action, &before[i]);
}

void restore_fault_handlers() {
  for (int i = 0; i < kCount; ++i) sigaction(kSignals[i], &before[i], nullptr);
  sigaltstack(&stack_before, nullptr);
}

}  // namespace emulator
}  // namespace pyconv
