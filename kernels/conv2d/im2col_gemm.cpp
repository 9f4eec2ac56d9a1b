// Convolution as a blocked matrix product (im2col + GEMM), all passes, nchw and nhwc.
//
//   fprop  y[k, pixels]  = w[k, (c,r,s)]   * cols(x)[(c,r,s), pixels]
//   dgrad  dx[c, pixels] = w[c, (k,r,s)]   * cols(dy)[(k,r,s), pixels]
//   wgrad  dw[k, (c,r,s)] = dy[k, pixels]  * cols(x)[(c,r,s), pixels]
//
// (nhwc: the same with pixels down and channels across; dgrad: one product per residue class of the stride.) cols
// never exists as a matrix: the GEMM asks for one kc x nc panel at a time and packs it straight from the tensor
// (im2col_pack_*.h) through one index map (im2col_map.h). dgrad is a gather like fprop, not col2im: every element
// of dx has one owner and its sum one order.
//
// Padding is multiplied, as zeros: an Inf or NaN of w (fprop, dgrad) or dy (wgrad) also reaches the outputs whose
// filter position lies on padding. Everything else propagates exactly.
#include <algorithm>

#include "conv2d/im2col_gather_nchw.h"
#include "conv2d/im2col_gather_nhwc.h"
#include "conv2d/im2col_wgrad.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

// Strides of the three tensors of one problem, by layout.
template <class T>
Gather<T> fprop_map(const Conv2dProblem& problem, const T* x, const T* w, const T* bias, T* y) {
  const bool nchw = problem.layout == kNchw;
  const int64_t p = problem.p(), q = problem.q(), taps = problem.r * problem.s, group_c = problem.group_c();
  Gather<T> map;
  map.h = fprop_axis(problem.h, p, problem.r, problem.stride_h, problem.pad_top, problem.dilation_h);
  map.w = fprop_axis(problem.w, q, problem.s, problem.stride_w, problem.pad_left, problem.dilation_w);
  map.images = problem.n, map.channels = group_c, map.rows = problem.group_k();
  map.source = x, map.source_image = problem.c * problem.h * problem.w;
  map.source_channel = nchw ? problem.h * problem.w : 1, map.source_pixel = nchw ? 1 : problem.c;
  map.weights = w, map.filter_taps = taps;
  map.weights_m = group_c * taps, map.weights_channel = nchw ? taps : 1;
  map.weights_r = nchw ? problem.s : problem.s * group_c, map.weights_s = nchw ? 1 : group_c;
  map.bias = bias;
  map.out = y, map.out_image = problem.k * p * q, map.out_channel = nchw ? p * q : 1;
  map.out_pixel = nchw ? 1 : problem.k, map.out_row = q * map.out_pixel;
  if (nchw) flatten_plain(map.h, map.w);
  return map;
}

template <class T>
struct FpropMaps {
  Gather<T> map;
  int64_t taps_before(int64_t) const { return 0; }
  Gather<T> operator()(int64_t) const { return map; }
};

// The residue classes (h mod stride_h, w mod stride_w) of dx, class_w fastest.
template <class T>
struct DgradMaps {
  const Conv2dProblem& problem;
  const T* dy;
  const T* w;
  T* dx;

  int64_t classes_h() const { return at_most(problem.stride_h, problem.h); }
  int64_t classes_w() const { return at_most(problem.stride_w, problem.w); }
  Axis axis_h(int64_t first) const {
    return dgrad_axis(first, problem.h, problem.p(), problem.r, problem.stride_h, problem.pad_top,
                      problem.dilation_h);
  }
  Axis axis_w(int64_t first) const {
    return dgrad_axis(first, problem.w, problem.q(), problem.s, problem.stride_w, problem.pad_left,
                      problem.dilation_w);
  }
  int64_t taps_before(int64_t index) const {
    int64_t before_h = 0, before_w = 0, all_w = 0;
    for (int64_t i = 0; i < index / classes_w(); ++i) before_h += axis_h(i).taps;
    for (int64_t i = 0; i < classes_w(); ++i) {
      if (i == index % classes_w()) before_w = all_w;
      all_w += axis_w(i).taps;
    }
    return before_h * all_w + axis_h(index / classes_w()).taps * before_w;
  }

  Gather<T> operator()(int64_t index) const {
    const bool nchw = problem.layout == kNchw;
    const int64_t plane_in = problem.p() * problem.q(), taps = problem.r * problem.s, group_c = problem.group_c();
    Gather<T> map;
    map.h = axis_h(index / classes_w());
    map.w = axis_w(index % classes_w());
    map.images = problem.n, map.channels = problem.group_k(), map.rows = group_c;
    map.source = dy, map.source_image = problem.k * plane_in;
    map.source_channel = nchw ? plane_in : 1, map.source_pixel = nchw ? 1 : problem.k;
    map.weights = w, map.filter_taps = taps;
    map.weights_m = nchw ? taps : 1, map.weights_channel = group_c * taps;
    map.weights_r = nchw ? problem.s : problem.s * group_c, map.weights_s = nchw ? 1 : group_c;
    map.bias = nullptr;
    map.out = dx, map.out_image = problem.c * problem.h * problem.w;
    map.out_channel = nchw ? problem.h * problem.w : 1;
    map.out_pixel = nchw ? 1 : problem.c, map.out_row = problem.w * map.out_pixel;
    if (nchw) flatten_plain(map.h, map.w);
    return map;
  }
};

template <class T, class Maps>
void gather(const Conv2dProblem& problem, int64_t classes, const Maps& maps, T* workspace) {
  const Gather<T> map = maps(0);
  if (problem.layout == kNchw) {
    gather_nchw(problem.groups, classes, maps, map.channels * map.source_channel,
                problem.group_k() * problem.group_c() * map.filter_taps, map.rows, workspace);
  } else {
    gather_nhwc(problem.groups, classes, maps, problem.group_k() * problem.group_c() * map.filter_taps, map.rows,
                workspace);
  }
}

template <class T, class Maps>
int64_t gather_workspace(const Conv2dProblem& problem, int64_t classes, const Maps& maps, int threads) {
  const Gather<T> map = maps(0);
  const int64_t gemm_k = map.channels * map.filter_taps;
  const int64_t elements =
      problem.layout == kNchw
          ? reordered_size(map, classes, problem.groups) + gemm_scratch_size<T>(map.pixels(), gemm_k) * threads
          : packed_weights_size<T>(problem.groups, classes, map.rows, gemm_k) +
                gemm_scratch_size<T>(0, 0) * threads;
  return elements * int64_t(sizeof(T));
}

// ---- fprop, dgrad, wgrad -------------------------------------------------------------------------------

template <class T>
void fprop(const Conv2dProblem& problem, const Conv2dArgs& args) {
  const FpropMaps<T> maps{fprop_map(problem, static_cast<const T*>(args.a), static_cast<const T*>(args.b),
                                    static_cast<const T*>(args.bias), static_cast<T*>(args.out))};
  gather(problem, 1, maps, static_cast<T*>(args.workspace));
}
template <class T>
int64_t fprop_workspace(const Conv2dProblem& problem, int threads) {
  const FpropMaps<T> maps{fprop_map<T>(problem, nullptr, nullptr, nullptr, nullptr)};
  return gather_workspace<T>(problem, 1, maps, threads);
}

template <class T>
void dgrad(const Conv2dProblem& problem, const Conv2dArgs& args) {
  const DgradMaps<T> maps{problem, static_cast<const T*>(args.a), static_cast<const T*>(args.b),
                          static_cast<T*>(args.out)};
  gather(problem, maps.classes_h() * maps.classes_w(), maps, static_cast<T*>(args.workspace));
}
template <class T>
int64_t dgrad_workspace(const Conv2dProblem& problem, int threads) {
  const DgradMaps<T> maps{problem, nullptr, nullptr, nullptr};
  return gather_workspace<T>(problem, maps.classes_h() * maps.classes_w(), maps, threads);
}

template <class T>
void wgrad(const Conv2dProblem& problem, const Conv2dArgs& args) {
  const Gather<T> map = fprop_map<T>(problem, static_cast<const T*>(args.a), nullptr, nullptr, nullptr);
  wgrad(problem, map, static_cast<const T*>(args.b), static_cast<T*>(args.out), static_cast<T*>(args.workspace));
}

// Places within one source row, padding included, are counted in 32-bit lanes.
bool rows_fit(const Conv2dProblem& problem) {
  const int64_t side = problem.pad_left + problem.pad_right, q = problem.q() + side, w = problem.w + side;
  const int64_t widest = problem.layout == kNhwc
                             ? std::max(w * problem.c, q * problem.k)
                             : std::max({w, q, problem.h * problem.w, problem.p() * problem.q()});
  return widest < int64_t(1) << 30;
}

// One entry per pass, float or double by the problem.
#define PYCONV_BY_DTYPE(pass)                                                             \
  void im2col_##pass(const Conv2dProblem& problem, const Conv2dArgs& args) {              \
    problem.dtype == kFloat64 ? pass<double>(problem, args) : pass<float>(problem, args); \
  }                                                                                       \
  int64_t im2col_##pass##_workspace(const Conv2dProblem& problem, int threads) {          \
    if (!rows_fit(problem)) return -1;                                                    \
    return problem.dtype == kFloat64 ? pass##_workspace<double>(problem, threads)         \
                                     : pass##_workspace<float>(problem, threads);         \
  }
PYCONV_BY_DTYPE(fprop)
PYCONV_BY_DTYPE(dgrad)
PYCONV_BY_DTYPE(wgrad)
#undef PYCONV_BY_DTYPE

PYCONV_CPU_KERNEL("conv2d.fprop.im2col_gemm", im2col_fprop, im2col_fprop_workspace)
PYCONV_CPU_KERNEL("conv2d.dgrad.im2col_gemm", im2col_dgrad, im2col_dgrad_workspace)
PYCONV_CPU_KERNEL("conv2d.wgrad.im2col_gemm", im2col_wgrad, im2col_wgrad_workspace)

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
