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
template <class E>
Gather<E> fprop_map(const Conv2dProblem& problem, const E* x, const E* w, const E* bias, E* y) {
  const bool nchw = problem.layout == kNchw;
  const int64_t p = problem.p(), q = problem.q(), taps = problem.r * problem.s, group_c = problem.group_c();
  Gather<E> map;
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

template <class E>
struct FpropMaps {
  Gather<E> map;
  int64_t taps_before(int64_t) const { return 0; }
  Gather<E> operator()(int64_t) const { return map; }
};

// The residue classes (h mod stride_h, w mod stride_w) of dx, class_w fastest.
template <class E>
struct DgradMaps {
  const Conv2dProblem& problem;
  const E* dy;
  const E* w;
  E* dx;

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

  Gather<E> operator()(int64_t index) const {
    const bool nchw = problem.layout == kNchw;
    const int64_t plane_in = problem.p() * problem.q(), taps = problem.r * problem.s, group_c = problem.group_c();
    Gather<E> map;
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

template <class E, class Maps>
void gather(const Conv2dProblem& problem, int64_t classes, const Maps& maps, void* workspace) {
  const Gather<E> map = maps(0);
  const int64_t weights_group = problem.group_k() * problem.group_c() * map.filter_taps;
  char* const memory = static_cast<char*>(workspace);
  if (problem.layout == kNchw) {
    gather_nchw<E>(problem.groups, classes, maps, map.channels * map.source_channel, weights_group, map.rows,
                   memory);
  } else {
    gather_nhwc<E>(problem.groups, classes, maps, weights_group, map.rows, memory);
  }
}

template <class E, class Maps>
int64_t gather_workspace(const Conv2dProblem& problem, int64_t classes, const Maps& maps, int threads) {
  const Gather<E> map = maps(0);
  const int64_t gemm_k = map.channels * map.filter_taps;
  if (problem.layout == kNchw)
    return reordered_size(map, classes, problem.groups) * int64_t(sizeof(E)) +
           gather_nchw_scratch<E>(map.rows, map.pixels(), gemm_k) * threads;
  using T = Accumulator<E>;
  return packed_weights_size<T>(problem.groups, classes, map.rows, gemm_k) * int64_t(sizeof(T)) +
         gather_nhwc_scratch<E>(map.pixels(), gemm_k) * threads;
}

// ---- fprop, dgrad, wgrad -------------------------------------------------------------------------------

template <class E>
FpropMaps<E> fprop_maps(const Conv2dProblem& problem, const Conv2dArgs& args) {
  return {fprop_map(problem, static_cast<const E*>(args.a), static_cast<const E*>(args.b),
                    static_cast<const E*>(args.bias), static_cast<E*>(args.out))};
}
template <class E>
DgradMaps<E> dgrad_maps(const Conv2dProblem& problem, const Conv2dArgs& args) {
  return {problem, static_cast<const E*>(args.a), static_cast<const E*>(args.b), static_cast<E*>(args.out)};
}

template <class E>
void fprop(const Conv2dProblem& problem, const Conv2dArgs& args) {
  gather<E>(problem, 1, fprop_maps<E>(problem, args), args.workspace);
}
template <class E>
int64_t fprop_workspace(const Conv2dProblem& problem, int threads) {
  return gather_workspace<E>(problem, 1, fprop_maps<E>(problem, {}), threads);
}

template <class E>
void dgrad(const Conv2dProblem& problem, const Conv2dArgs& args) {
  const DgradMaps<E> maps = dgrad_maps<E>(problem, args);
  gather<E>(problem, maps.classes_h() * maps.classes_w(), maps, args.workspace);
}
template <class E>
int64_t dgrad_workspace(const Conv2dProblem& problem, int threads) {
  const DgradMaps<E> maps = dgrad_maps<E>(problem, {});
  return gather_workspace<E>(problem, maps.classes_h() * maps.classes_w(), maps, threads);
}

template <class E>
void wgrad(const Conv2dProblem& problem, const Conv2dArgs& args) {
  const Gather<E> map = fprop_map<E>(problem, static_cast<const E*>(args.a), nullptr, nullptr, nullptr);
  wgrad<E>(problem, map, static_cast<const E*>(args.b), static_cast<E*>(args.out),
           static_cast<Accumulator<E>*>(args.workspace));
}

// Places within one source row, padding included, are counted in 32-bit lanes.
bool rows_fit(const Conv2dProblem& problem) {
  const int64_t side = problem.pad_left + problem.pad_right, q = problem.q() + side, w = problem.w + side;
  const int64_t widest = problem.layout == kNhwc
                             ? std::max(w * problem.c, q * problem.k)
                             : std::max({w, q, problem.h * problem.w, problem.p() * problem.q()});
  return widest < int64_t(1) << 30;
}

// One entry per pass, for every type of element.
#define PYCONV_BY_DTYPE(pass)                                                                                 \
  void im2col_##pass(const Conv2dProblem& problem, const Conv2dArgs& args) {                                  \
    with_element(problem.dtype, [&](auto element) { pass<decltype(element)>(problem, args); });               \
  }                                                                                                           \
  int64_t im2col_##pass##_workspace(const Conv2dProblem& problem, int threads) {                              \
    if (!rows_fit(problem)) return -1;                                                                        \
    return with_element(problem.dtype,                                                                        \
                        [&](auto element) { return pass##_workspace<decltype(element)>(problem, threads); }); \
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
