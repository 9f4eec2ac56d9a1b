// Direct convolution: fprop and dgrad in both layouts, without an im2col matrix.
//
//   y[n,k,p,q]  = bias[k] + sum over c,r,s of  x[n,c,h,w] * w[k,c,r,s]
//   dx[n,c,h,w] =           sum over k,r,s of dy[n,k,p,q] * w[k,c,r,s]
//   where h = p*stride_h - pad_top + r*dilation_h, and the same for w
//
// index_map.h      both passes as one gather over taps; the cut into units of parallel work
// direct_pack.h    packing of the filters into panels
// direct_nhwc.h    nhwc: mr pixels x nr channels, channels in the lanes; x read in place through offsets
// direct_nhwc_wide.h   the same in scratch, for 16-bit elements
// direct_nchw.h    nchw: mr channels x vectors of pixels, pixels in the lanes; x from a packed panel, which
//                  direct_nchw_input.h fills, and direct_nchw_store.h says where the lanes go
#include "direct_nchw.h"
#include "direct_nhwc.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

template <bool kDgrad>
void direct(const Conv2dProblem& problem, const Conv2dArgs& args) {
  with_element(problem.dtype, [&](auto element) {
    using E = decltype(element);
    problem.layout == kNhwc ? direct_nhwc<E>(problem, args, kDgrad) : direct_nchw<E>(problem, args, kDgrad);
  });
}

template <bool kDgrad>
int64_t direct_workspace(const Conv2dProblem& problem, int threads) {
  return with_element(problem.dtype, [&](auto element) {
    using E = decltype(element);
    return problem.layout == kNhwc ? NhwcPlan<E>(problem, kDgrad).workspace(threads)
                                   : NchwPlan<E>(problem, kDgrad).workspace(threads);
  });
}

PYCONV_CPU_KERNEL("conv2d.fprop.direct", direct<false>, direct_workspace<false>)
PYCONV_CPU_KERNEL("conv2d.dgrad.direct", direct<true>, direct_workspace<true>)

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
