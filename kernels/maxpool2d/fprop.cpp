// Max-pooling forward, values only: y[n,c,p,q] = max over r, s of x[n,c,h,w].
//
// Same stages as fprop_argmax.cpp without the places; see fprop_nchw.h and fprop_nhwc.h.
#include "fprop_nchw.h"
#include "fprop_nhwc.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

template <class T>
void run(const Pool2dProblem& problem, const Pool2dArgs& args) {
  const T* x = static_cast<const T*>(args.a);
  const Output<T> y{static_cast<T*>(args.out), nullptr};
  problem.layout == kNhwc ? fprop_nhwc<T, false>(problem, x, y) : fprop_nchw<T, false>(problem, x, y);
}

void fprop(const Pool2dProblem& problem, const Pool2dArgs& args) {
  problem.dtype == kFloat64 ? run<double>(problem, args) : run<float>(problem, args);
}
PYCONV_CPU_KERNEL("maxpool2d.fprop.direct", fprop, nullptr)

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
