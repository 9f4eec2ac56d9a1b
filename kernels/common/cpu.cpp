// Threads, the instruction set, and the registry of CPU kernels: everything here runs once or per launch,
// nothing per element.
#include "cpu.h"

#include <pthread.h>
#include <torch/csrc/stable/c/shim.h>

#include <atomic>
#include <cstdlib>
#include <unordered_map>

#include "library.h"

namespace pyconv {

// ---- Threads ---------------------------------------------------------------------------------------

namespace {
thread_local bool inside_parallel_for = false;
// A forked child inherits the pool's locks but none of its threads, so it must not wait for them.
// DataLoader workers are such children.
std::atomic<bool> forked{false};
const int fork_hook = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });

struct Region {
  ParallelBody body;
  void* context;
  int64_t count;
  std::atomic<int64_t> next{0};
};
}  // namespace

int num_threads() {
  if (inside_parallel_for || forked.load(std::memory_order_relaxed)) return 1;
  uint32_t threads = 1;
  return torch_get_num_threads(&threads) == 0 && threads > 0 ? static_cast<int>(threads) : 1;
}

void parallel_for(int64_t count, ParallelBody body, void* context) {
  const int64_t threads = count < num_threads() ? count : num_threads();
  if (threads <= 1) {
    for (int64_t index = 0; index < count; ++index) body(context, index, 0);
    return;
  }
  Region region{body, context, count};
  // One range element per thread; each then takes indices from the shared counter until none is left.
  torch_parallel_for(
      0, threads, 1,
      [](int64_t begin, int64_t end, void* pointer) {
        Region& shared = *static_cast<Region*>(pointer);
        inside_parallel_for = true;
        for (int64_t thread = begin; thread < end; ++thread) {
          for (int64_t index; (index = shared.next.fetch_add(1, std::memory_order_relaxed)) < shared.count;)
            shared.body(shared.context, index, static_cast<int>(thread));
        }
        inside_parallel_for = false;
      },
      &region);
}

// ---- Instruction sets ------------------------------------------------------------------------------

namespace {
// A function's static, because static initialisers of the kernel files fill it before main.
std::vector<CpuKernel>& all_kernels() {
  static std::vector<CpuKernel> kernels;
  return kernels;
}

bool processor_has(const std::string& isa) {
  if (isa == "baseline") return true;
#if defined(__x86_64__)
  if (isa == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == "avx512")
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#endif
  return false;
}

struct Active {
  std::string isa, error;
  std::unordered_map<std::string, const CpuKernel*> kernels;

  Active() {
    std::vector<std::string> runnable = runnable_isas();
    const char* forced = std::getenv("PYCONV_ISA");
    if (!forced || !*forced || !use(forced)) {
      if (forced && *forced) {
        error = "PYCONV_ISA='" + std::string(forced) + "' cannot run here; accepted:";
        for (const std::string& name : runnable) error += " " + name;
      }
      use(runnable.back());
    }
  }
  bool use(const std::string& wanted) {
    bool runnable = false;
    for (const std::string& name : runnable_isas()) runnable |= name == wanted;
    if (!runnable) return false;
    isa = wanted;
    kernels.clear();
    for (const CpuKernel& kernel : all_kernels())
      if (kernel.isa == isa) kernels[kernel.name] = &kernel;
    return true;
  }
};

Active& active() {
  static Active instance;
  return instance;
}
}  // namespace

std::vector<std::string> runnable_isas() {
  std::vector<std::string> runnable;
  for (const char* isa : {"baseline", "avx2", "avx512"}) {
    bool built = false;
    for (const CpuKernel& kernel : all_kernels()) built |= kernel.isa == isa;
    if (built && processor_has(isa)) runnable.push_back(isa);
  }
  if (runnable.empty()) runnable.push_back("baseline");
  return runnable;
}

const std::string& active_isa() { return active().isa; }
const std::string& isa_error() { return active().error; }
bool set_active_isa(const std::string& isa) { return active().use(isa); }

// ---- The registry ----------------------------------------------------------------------------------

bool add_kernel(const char* isa, const char* name, Conv2dRun run, Conv2dWorkspace workspace) {
  all_kernels().push_back({isa, name, run, workspace, nullptr, nullptr});
  return true;
}

bool add_kernel(const char* isa, const char* name, Pool2dRun run, Pool2dWorkspace workspace) {
  all_kernels().push_back({isa, name, nullptr, nullptr, run, workspace});
  return true;
}

const CpuKernel* find_kernel(const char* name, size_t length) {
  auto found = active().kernels.find(std::string(name, length));
  return found == active().kernels.end() ? nullptr : found->second;
}

std::vector<const CpuKernel*> active_kernels() {
  std::vector<const CpuKernel*> kernels;
  for (const auto& entry : active().kernels) kernels.push_back(entry.second);
  return kernels;
}

}  // namespace pyconv
