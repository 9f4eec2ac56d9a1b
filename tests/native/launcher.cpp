// Launches CPU kernels without torch, on memory that is fenced to the byte: what tests/native.py talks to.
//
// It is built with a sanitizer, which cannot well be loaded into Python. Standard input brings one launch after
// another, in the machine's own byte order:
//
//   Request   then its name, its problem (the struct of common/problem.h) and the bytes of each operand
//
// and standard output gets for each
//
//   int64 bytes of workspace; int64 count, and the units of that many parallel_fors; the bytes of each result
//
// or, for a kernel that there is not or a problem that it refuses, -1. Whatever else a kernel does wrong ends the
// process with a report on standard error.
#include <cstring>
#include <string>
#include <vector>

#include "common/library.h"
#include "memory.h"
#include "threads.h"

namespace {
using namespace pyconv;

// Sizes in bytes, -1 for what a kernel does not have. `bias` is conv2d's third operand, `argmax` max-pooling's second.
struct Request {
  int64_t name, problem;
  int64_t threads, order, ends_at_fence, fill;
  int64_t launch;  // 0: only its workspace is asked for
  int64_t a, b, bias, argmax, out, argmax_out;
};

bool read_bytes(void* to, int64_t bytes) { return bytes <= 0 || std::fread(to, bytes, 1, stdin) == 1; }

template <class T>
void write_bytes(const T* from, int64_t bytes) {
  if (bytes > 0) std::fwrite(from, bytes, 1, stdout);
}

void write_number(int64_t number) { write_bytes(&number, sizeof number); }

// Standard input holds the values of an operand.
struct Operand : Block {
  Operand(int64_t bytes, const Request& request) : Block(bytes, request.ends_at_fence, 0xFF) {
    if (!read_bytes(data(), bytes)) std::exit(0);
    protect();
  }
};

struct Result : Block {
  Result(int64_t bytes, const Request& request)
      : Block(bytes, request.ends_at_fence, static_cast<unsigned char>(request.fill)) {}
};

void refuse_writes_beside(const Block& block, const char* what) {
  if (!block.writes_beside()) return;
  std::fprintf(stderr, "the kernel wrote beside its %s\n", what);
  std::abort();
}

template <class Problem, class WorkspaceFunction, class Run>
void launch(const Request& request, const Problem& problem, WorkspaceFunction workspace_bytes, const Run& run) {
  const Operand a(request.a, request), b(request.b, request), bias(request.bias, request),
      argmax(request.argmax, request);
  const int64_t bytes = workspace_bytes ? workspace_bytes(problem, num_threads()) : 0;
  write_number(bytes);
  if (bytes < 0) return;
  const Result out(request.out, request), argmax_out(request.argmax_out, request);
  schedule.counts.clear();
  if (request.launch) {
    const Block workspace(bytes > 0 ? bytes : -1, request.ends_at_fence, static_cast<unsigned char>(request.fill),
                          64);
    run(a.data(), b.data(), bias.data(), argmax.data(), out.data(), argmax_out.data(), workspace.data());
    refuse_writes_beside(workspace, "workspace");
    refuse_writes_beside(out, "result");
    refuse_writes_beside(argmax_out, "argmax");
  }
  write_number(static_cast<int64_t>(schedule.counts.size()));
  write_bytes(schedule.counts.data(), static_cast<int64_t>(schedule.counts.size() * sizeof(int64_t)));
  write_bytes(out.data(), request.out);
  write_bytes(argmax_out.data(), request.argmax_out);
}

void conv2d(const Request& request, const CpuKernel& kernel) {
  Conv2dProblem problem;
  if (request.problem != sizeof problem || !read_bytes(&problem, sizeof problem)) std::exit(2);
  launch(request, problem, kernel.conv2d_workspace,
         [&](const void* a, const void* b, const void* bias, const void*, void* out, void*, void* workspace) {
           kernel.conv2d_run(problem, {a, b, bias, out, workspace});
         });
}

void pool2d(const Request& request, const CpuKernel& kernel) {
  Pool2dProblem problem;
  if (request.problem != sizeof problem || !read_bytes(&problem, sizeof problem)) std::exit(2);
  launch(request, problem, kernel.pool2d_workspace,
         [&](const void* a, const void*, const void*, const void* argmax, void* out, void* argmax_out,
             void* workspace) {
           kernel.pool2d_run(problem, {a, static_cast<const int32_t*>(argmax), out,
                                       static_cast<int32_t*>(argmax_out), workspace});
         });
}
}  // namespace

int main() {
  for (Request request; read_bytes(&request, sizeof request);) {
    std::string name(request.name, '\0');
    if (!read_bytes(&name[0], request.name)) return 0;
    const CpuKernel* kernel = find_kernel(name.data(), name.size());
    if (!kernel) {
      std::fprintf(stderr, "no kernel %s for %s\n", name.c_str(), active_isa().c_str());
      return 2;
    }
    schedule.threads = request.threads, schedule.order = request.order;
    kernel->conv2d_run ? conv2d(request, *kernel) : pool2d(request, *kernel);
    std::fflush(stdout);
  }
  return 0;
}
