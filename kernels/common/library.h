// The loaded library: which instruction set it runs and where its kernels are. For bindings.cpp only.
#pragma once
#include <string>
#include <vector>

#include "cpu.h"

namespace pyconv {

struct CpuKernel {
  std::string isa, name;
  Conv2dRun conv2d_run = nullptr;
  Conv2dWorkspace conv2d_workspace = nullptr;
  Pool2dRun pool2d_run = nullptr;
  Pool2dWorkspace pool2d_workspace = nullptr;
};

// The instruction set in use: the best this processor has, or PYCONV_ISA from the environment.
const std::string& active_isa();
// Every instruction set that this build has and this processor can run, best last.
std::vector<std::string> runnable_isas();
// Switches for the whole process; false, changing nothing, if `isa` is not runnable. For tests.
bool set_active_isa(const std::string& isa);
// Why PYCONV_ISA could not be followed, or empty.
const std::string& isa_error();

// The kernel of that name for the active instruction set, or null.
const CpuKernel* find_kernel(const char* name, size_t length);
std::vector<const CpuKernel*> active_kernels();

}  // namespace pyconv
