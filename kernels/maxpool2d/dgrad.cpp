// Max-pooling backward: dx[n,c,argmax[n,c,p,q]] += dy[n,c,p,q], dx zero elsewhere.
//
// argmax may come from a caller: places outside the plane, -1 among them, are skipped. Every element of dx adds
// its dy in row-major order of (p, q), whichever of the two ways of dgrad_nchw.h and dgrad_nhwc.h is taken.
#include "dgrad_nchw.h"
#include "dgrad_nhwc.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

template <class T>
void run(const Pool2dProblem& problem, const Pool2dArgs& args) {
  const T* dy = static_cast<const T*>(args.a);
  T* dx = static_cast<T*>(args.out);
  if (problem.layout == kNhwc) {
    dgrad_nhwc(problem, dy, args.argmax, dx, static_cast<int64_t*>(args.workspace));
  } else {
    dgrad_nchw(problem, dy, args.argmax, dx);
  }
}

void dgrad(const Pool2dProblem& problem, const Pool2dArgs& args) {
  problem.dtype == kFloat64 ? run<double>(problem, args) : run<float>(problem, args);
}
int64_t dgrad_workspace(const Pool2dProblem& problem, int) {
  return problem.layout == kNhwc ? problem.n * units_per_image(problem) * int64_t(sizeof(int64_t)) : 0;
}
PYCONV_CPU_KERNEL("maxpool2d.dgrad.direct", dgrad, dgrad_workspace)

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
