// The instruction set, and the registry of CPU kernels: everything here runs once or per launch, nothing per
// element.
#include "cpu.h"

#include <cstdlib>
#include <unordered_map>

#include "library.h"

namespace pyconv {

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
