// Direct convolution: fprop and dgrad in both layouts, without an im2col matrix.
//
//   y[n,k,p,q]  = bias[k] + sum over c,r,s of  x[n,c,h,w] * w[k,c,r,s]
//   dx[n,c,h,w] =           sum over k,r,s of dy[n,k,p,q] * w[k,c,r,s]
//   where h = p*stride_h - pad_top + r*dilation_h, and the same for w
//
// index_map.h      both passes as one gather over taps; the cut into units of parallel work
// direct_pack.h    packing of the filters into panels
// direct_nhwc.h    nhwc: mr pixels x nr channels, channels in the lanes; x read in place through offsets
// direct_nchw.h    nchw: mr channels x vectors of pixels, pixels in the lanes; x from a packed panel, which
//                  direct_nchw_input.h fills, and direct_nchw_store.h says where the lanes go
#include "direct_nchw.h"
#include "direct_nhwc.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

template <class T>
void run(const Conv2dProblem& problem, const Conv2dArgs& args, bool dgrad) {
  problem.layout == kNhwc ? direct_nhwc<T>(problem, args, dgrad) : direct_nchw<T>(problem, args, dgrad);
}

template <class T>
int64_t bytes(const Conv2dProblem& problem, int threads, bool dgrad) {
  return problem.layout == kNhwc ? NhwcPlan<T>(problem, dgrad).workspace(threads)
                                 : NchwPlan<T>(problem, dgrad).workspace(threads);
}

template <bool kDgrad>
void direct(const Conv2dProblem& problem, const Conv2dArgs& args) {
  problem.dtype == kFloat64 ? run<double>(problem, args, kDgrad) : run<float>(problem, args, kDgrad);
}

template <bool kDgrad>
int64_t direct_workspace(const Conv2dProblem& problem, int threads) {
  return problem.dtype == kFloat64 ? bytes<double>(problem, threads, kDgrad)
                                   : bytes<float>(problem, threads, kDgrad);
}

PYCONV_CPU_KERNEL("conv2d.fprop.direct", direct<false>, direct_workspace<false>)
PYCONV_CPU_KERNEL("conv2d.dgrad.direct", direct<true>, direct_workspace<true>)

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
