// Max-pooling forward, values only: y[n,c,p,q] = max over r, s of x[n,c,h,w].
//
// Same stages as fprop_argmax.cpp without the places; see fprop_nchw.h and fprop_nhwc.h.
#include "fprop_nchw.h"
#include "fprop_nhwc.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

void fprop(const Pool2dProblem& problem, const Pool2dArgs& args) {
  with_element(problem.dtype, [&](auto element) {
    using T = decltype(element);
    using Wide = Accumulator<T>;
    run_forward<T>(problem, problem.layout == kNhwc ? nhwc_rows<Wide, false> : fprop_nchw<Wide, false>(problem),
                   args);
  });
}
int64_t fprop_workspace(const Pool2dProblem& problem, int threads) {
  return with_element(problem.dtype,
                      [&](auto element) { return forward_workspace<decltype(element)>(problem, threads); });
}
PYCONV_CPU_KERNEL("maxpool2d.fprop.direct", fprop, fprop_workspace)

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
