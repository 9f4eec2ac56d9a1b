// What every CPU kernel file stands on: the instruction set it is being compiled for, its threads, and
// how a kernel makes itself known to the table.
//
// Each kernel .cpp is compiled once per instruction set with PYCONV_ISA set to baseline, avx2 or avx512
// (see CMakeLists.txt), inside namespace pyconv::PYCONV_ISA, so the copies never mix at link time.
#pragma once
#include <cstdint>
#include <memory>
#include <type_traits>

#include "problem.h"

#ifndef PYCONV_ISA
#define PYCONV_ISA baseline
#endif
#define PYCONV_STRINGIZE_(x) #x
#define PYCONV_STRINGIZE(x) PYCONV_STRINGIZE_(x)

namespace pyconv {

// ---- Threads: torch's own pool -------------------------------------------------------------------

// Threads a parallel_for may use now; torch.set_num_threads decides. Only scratch sizes may depend on it.
int num_threads();

using ParallelBody = void (*)(void* context, int64_t index, int thread);
void parallel_for(int64_t count, ParallelBody body, void* context);

// Runs body(index, thread) for every index in [0, count), thread < num_threads(). Indices are handed out
// dynamically, so which thread runs an index depends on timing: what an index writes must depend on the
// index alone. Calls from inside a body run serially with thread = 0: never nest.
template <class Body>
void parallel_for(int64_t count, Body&& body) {
  using Plain = std::remove_reference_t<Body>;
  parallel_for(
      count, [](void* context, int64_t index, int thread) { (*static_cast<Plain*>(context))(index, thread); },
      const_cast<void*>(static_cast<const void*>(std::addressof(body))));
}

// ---- The kernels -----------------------------------------------------------------------------------

// Workspace is 64-byte aligned, holds what the kernel's workspace function asked for, and is not cleared.
struct Conv2dArgs {
  const void* a;     // fprop: x   dgrad: dy   wgrad: x    bgrad: dy
  const void* b;     // fprop: w   dgrad: w    wgrad: dy   bgrad: unused
  const void* bias;  // fprop only, [k] or null
  void* out;         // fprop: y   dgrad: dx   wgrad: dw   bgrad: db
  void* workspace;
};
// argmax holds int32 places h*w_extent + w within one (n, c) plane, in the layout of y; -1 where a window
// covers no element of x (possible with dilation), and such a y is -inf.
struct Pool2dArgs {
  const void* a;          // fprop, fprop_argmax, gather: x   dgrad: dy
  const int32_t* argmax;  // dgrad, gather: input
  void* out;              // fprop, fprop_argmax, gather: y-shaped   dgrad: dx
  int32_t* argmax_out;    // fprop_argmax only
  void* workspace;
};

using Conv2dRun = void (*)(const Conv2dProblem&, const Conv2dArgs&);
// Bytes of workspace, or -1 for a problem that the kernel cannot do (its table line says so first).
using Conv2dWorkspace = int64_t (*)(const Conv2dProblem&, int threads);
using Pool2dRun = void (*)(const Pool2dProblem&, const Pool2dArgs&);
using Pool2dWorkspace = int64_t (*)(const Pool2dProblem&, int threads);

// Called by static initialisers. A null workspace function means none is needed.
bool add_kernel(const char* isa, const char* name, Conv2dRun run, Conv2dWorkspace workspace);
bool add_kernel(const char* isa, const char* name, Pool2dRun run, Pool2dWorkspace workspace);

// PYCONV_CPU_KERNEL("conv2d.fprop.direct", direct_fprop, direct_fprop_workspace)
// The name is the one the table line uses (kernels/<operation>/table.py).
#define PYCONV_CPU_KERNEL(name, run, workspace) PYCONV_CPU_KERNEL_(name, run, workspace, __COUNTER__)
#define PYCONV_CPU_KERNEL_(name, run, workspace, id) PYCONV_CPU_KERNEL__(name, run, workspace, id)
#define PYCONV_CPU_KERNEL__(name, run, workspace, id) \
  [[maybe_unused]] static const bool added_##id =     \
      ::pyconv::add_kernel(PYCONV_STRINGIZE(PYCONV_ISA), name, run, workspace);

}  // namespace pyconv
