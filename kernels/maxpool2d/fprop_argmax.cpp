// Max-pooling forward with the place of each maximum, which the backward pass needs:
//   y[n,c,p,q] = max over r, s of x[n,c,h,w]      argmax[n,c,p,q] = h*W + w of that element
//
// The first maximum in row-major order wins ties, a NaN beats every number, and the last NaN wins, as in torch.
#include "fprop_nchw.h"
#include "fprop_nhwc.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

template <class T>
void run(const Pool2dProblem& problem, const Pool2dArgs& args) {
  const T* x = static_cast<const T*>(args.a);
  const Output<T> y{static_cast<T*>(args.out), args.argmax_out};
  problem.layout == kNhwc ? fprop_nhwc<T, true>(problem, x, y) : fprop_nchw<T, true>(problem, x, y);
}

void fprop_argmax(const Pool2dProblem& problem, const Pool2dArgs& args) {
  problem.dtype == kFloat64 ? run<double>(problem, args) : run<float>(problem, args);
}
PYCONV_CPU_KERNEL("maxpool2d.fprop_argmax.direct", fprop_argmax, nullptr)

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
