// Max-pooling forward with the place of each maximum, which the backward pass needs:
//   y[n,c,p,q] = max over r, s of x[n,c,h,w]      argmax[n,c,p,q] = h*W + w of that element
//
// The first maximum in row-major order wins ties, a NaN beats every number, and the last NaN wins, as in torch.
#include "fprop_nchw.h"
#include "fprop_nhwc.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

void fprop_argmax(const Pool2dProblem& problem, const Pool2dArgs& args) {
  with_element(problem.dtype, [&](auto element) {
    using T = decltype(element);
    using Wide = Accumulator<T>;
    run_forward<T>(problem, problem.layout == kNhwc ? nhwc_rows<Wide, true> : fprop_nchw<Wide, true>(problem),
                   args);
  });
}
int64_t fprop_argmax_workspace(const Pool2dProblem& problem, int threads) {
  return with_element(problem.dtype,
                      [&](auto element) { return forward_workspace<decltype(element)>(problem, threads); });
}
PYCONV_CPU_KERNEL("maxpool2d.fprop_argmax.direct", fprop_argmax, fprop_argmax_workspace)

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
