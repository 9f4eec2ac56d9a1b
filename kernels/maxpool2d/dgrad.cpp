// Max-pooling backward: dx[n,c,argmax[n,c,p,q]] += dy[n,c,p,q], dx zero elsewhere.
//
// argmax may come from a caller: places outside the plane, -1 among them, are skipped. Every element of dx adds
// its dy in row-major order of (p, q), whichever of the two ways of dgrad_nchw.h and dgrad_nhwc.h is taken.
#include "dgrad_nchw.h"
#include "dgrad_nhwc.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

void dgrad(const Pool2dProblem& problem, const Pool2dArgs& args) {
  with_element(problem.dtype, [&](auto element) {
    using T = decltype(element);
    const T* dy = static_cast<const T*>(args.a);
    T* dx = static_cast<T*>(args.out);
    char* workspace = static_cast<char*>(args.workspace);
    problem.layout == kNhwc ? dgrad_nhwc(problem, dy, args.argmax, dx, workspace)
                            : dgrad_nchw(problem, dy, args.argmax, dx, workspace);
  });
}
int64_t dgrad_workspace(const Pool2dProblem& problem, int threads) {
  return with_element(problem.dtype, [&](auto element) {
    using T = decltype(element);
    if (problem.layout == kNchw) return dgrad_nchw_workspace<T>(problem, threads);
    const NhwcScratch<T> sizes(problem);
    return sizes.missing + threads * sizes.thread;
  });
}
PYCONV_CPU_KERNEL("maxpool2d.dgrad.direct", dgrad, dgrad_workspace)

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
