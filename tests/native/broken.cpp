// Kernels with one mistake each, which the gates of tests/test_sanitizers.py and tests/test_bounds.py must find.
// Those of fprop compute y = x for a 1x1 filter over one channel of float32, correct but for the mistake.
#include "common/cpu.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

volatile int64_t one = 1;  // keeps the compiler from seeing through any of them

enum class Mistake {
  kNone,
  kReadsPastX,
  kReadsBeforeX,
  kWritesPastY,
  kWritesBeforeY,
  kWritesX,
  kReadsPastWorkspace,
  kWritesPastWorkspace,
  kWritesBeforeWorkspace,
  kOverflows,
  kShiftsTooFar,
  kLoadsMisaligned,
};

int64_t workspace_bytes(const Conv2dProblem& problem, int) { return problem.y_size() * int64_t(sizeof(float)); }

template <Mistake kMistake>
void copy(const Conv2dProblem& problem, const Conv2dArgs& args) {
  float* x = static_cast<float*>(const_cast<void*>(args.a));
  float* y = static_cast<float*>(args.out);
  float* workspace = static_cast<float*>(args.workspace);
  const int64_t size = problem.y_size();
  for (int64_t i = 0; i < size; ++i) workspace[i] = x[i];
  for (int64_t i = 0; i < size; ++i) y[i] = workspace[i];
  volatile float seen = 0;
  switch (kMistake) {
    case Mistake::kNone: break;
    case Mistake::kReadsPastX: seen = x[size - 1 + one]; break;
    case Mistake::kReadsBeforeX: seen = x[-one]; break;
    case Mistake::kWritesPastY: y[size - 1 + one] = 1; break;
    case Mistake::kWritesBeforeY: y[-one] = 1; break;
    case Mistake::kWritesX: x[0] = x[0] + float(one); break;
    case Mistake::kReadsPastWorkspace: seen = workspace[size - 1 + one]; break;
    case Mistake::kWritesPastWorkspace: workspace[size - 1 + one] = 1; break;
    case Mistake::kWritesBeforeWorkspace: workspace[-one] = 1; break;
    case Mistake::kOverflows: seen = float(int32_t(INT32_MAX) + int32_t(one)); break;
    case Mistake::kShiftsTooFar: seen = float(int32_t(1) << (31 + int32_t(one))); break;
    case Mistake::kLoadsMisaligned:
      seen = *reinterpret_cast<const float*>(reinterpret_cast<const char*>(workspace) + one);
      break;
  }
  static_cast<void>(seen);
}

// db[0] = sum of dy, in chunks. A chunk's place for its sum is its own, or `kShared`: that of the chunk before too.
template <bool kShared>
void sum(const Conv2dProblem& problem, const Conv2dArgs& args) {
  const float* dy = static_cast<const float*>(args.a);
  float* sums = static_cast<float*>(args.workspace);
  const int64_t size = problem.y_size(), chunks = 8;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) sums[chunk] = 0;
  parallel_for(chunks, [&](int64_t chunk, int) {
    float* own = sums + (kShared ? chunk / 2 : chunk);
    for (int64_t i = chunk; i < size; i += chunks) *own += dy[i];
  });
  float total = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) total += sums[chunk];
  static_cast<float*>(args.out)[0] = total;
}
int64_t sum_bytes(const Conv2dProblem&, int) { return 8 * sizeof(float); }

// Its chunks are as many as its threads.
void sum_by_threads(const Conv2dProblem& problem, const Conv2dArgs& args) {
  const float* dy = static_cast<const float*>(args.a);
  float* sums = static_cast<float*>(args.workspace);
  const int64_t size = problem.y_size(), chunks = num_threads();
  parallel_for(chunks, [&](int64_t chunk, int) {
    sums[chunk] = 0;
    for (int64_t i = chunk; i < size; i += chunks) sums[chunk] += dy[i];
  });
  float total = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) total += sums[chunk];
  static_cast<float*>(args.out)[0] = total;
}
int64_t sum_by_threads_bytes(const Conv2dProblem&, int threads) { return threads * int64_t(sizeof(float)); }

void nests(const Conv2dProblem&, const Conv2dArgs&) {
  parallel_for(2, [&](int64_t, int) { parallel_for(2, [](int64_t, int) {}); });
}

PYCONV_CPU_KERNEL("conv2d.fprop.none", copy<Mistake::kNone>, workspace_bytes)
PYCONV_CPU_KERNEL("conv2d.fprop.reads_past_x", copy<Mistake::kReadsPastX>, workspace_bytes)
PYCONV_CPU_KERNEL("conv2d.fprop.reads_before_x", copy<Mistake::kReadsBeforeX>, workspace_bytes)
PYCONV_CPU_KERNEL("conv2d.fprop.writes_past_y", copy<Mistake::kWritesPastY>, workspace_bytes)
PYCONV_CPU_KERNEL("conv2d.fprop.writes_before_y", copy<Mistake::kWritesBeforeY>, workspace_bytes)
PYCONV_CPU_KERNEL("conv2d.fprop.writes_x", copy<Mistake::kWritesX>, workspace_bytes)
PYCONV_CPU_KERNEL("conv2d.fprop.reads_past_workspace", copy<Mistake::kReadsPastWorkspace>, workspace_bytes)
PYCONV_CPU_KERNEL("conv2d.fprop.writes_past_workspace", copy<Mistake::kWritesPastWorkspace>, workspace_bytes)
PYCONV_CPU_KERNEL("conv2d.fprop.writes_before_workspace", copy<Mistake::kWritesBeforeWorkspace>, workspace_bytes)
PYCONV_CPU_KERNEL("conv2d.fprop.overflows", copy<Mistake::kOverflows>, workspace_bytes)
PYCONV_CPU_KERNEL("conv2d.fprop.shifts_too_far", copy<Mistake::kShiftsTooFar>, workspace_bytes)
PYCONV_CPU_KERNEL("conv2d.fprop.loads_misaligned", copy<Mistake::kLoadsMisaligned>, workspace_bytes)
PYCONV_CPU_KERNEL("conv2d.bgrad.sums", sum<false>, sum_bytes)
PYCONV_CPU_KERNEL("conv2d.bgrad.races", sum<true>, sum_bytes)
PYCONV_CPU_KERNEL("conv2d.bgrad.chunks_are_threads", sum_by_threads, sum_by_threads_bytes)
PYCONV_CPU_KERNEL("conv2d.bgrad.nests", nests, nullptr)

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
