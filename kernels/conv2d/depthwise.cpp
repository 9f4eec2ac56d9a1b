// Depthwise convolution, one filter per channel (groups == c == k): forward and input gradient.
//
//   fprop   y[n,k,p,q]  = bias[k] + sum over r,s of w[k,r,s] * x[n,k,h,w]
//   dgrad   dx[n,k,h,w] =           sum over r,s of w[k,r,s] * dy[n,k,p,q]
//
//   where h = p*stride_h - pad_top + r*dilation_h; dgrad reads the same map from the other side.
//
// Both gather along the axes of depthwise_axis.h and differ in nothing else. With r*s FMAs for each element read
// and written, memory is the bound; a kernel only has to keep to vectors and to read each row from a near cache.
//
//   nchw   a vector is kLanes outputs of one row; each tap is one (deinterleaved, masked at the borders) load
//   nhwc   a vector is kLanes channels of one output; kPixels outputs share each load of a weight
//
// An output sums its taps in the order r, s whatever tile it is in, so its bits depend on nothing but its sample.
// Elements E of 16 bits are widened when loaded, the filters once a call, and sums of T, a float, rounded when stored.
#include "depthwise_axis.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

struct DepthwiseTile {
  static constexpr int kPixels = 8;   // nhwc: one weight load for 8 FMAs; 8 chains hide the FMA's latency
  static constexpr int kWindows = 8;  // nchw: taps s whose masks are kept for all rows of a plane
  static constexpr int64_t kUnitFmas = 1 << 19;  // of one parallel unit: ~20 us
};

template <class E>
class Depthwise {
 public:
  using T = Accumulator<E>;

  Depthwise(const Conv2dProblem& problem, const Conv2dArgs& args, bool dgrad)
      : in_(static_cast<const E*>(args.a)),
        w_(static_cast<const E*>(args.b)),
        bias_(static_cast<const E*>(args.bias)),
        out_(static_cast<E*>(args.out)),
        n_(problem.n),
        channels_(problem.c),
        taps_r_(problem.r),
        taps_s_(problem.s),
        in_h_(dgrad ? problem.p() : problem.h),
        in_w_(dgrad ? problem.q() : problem.w) {
    char* memory = static_cast<char*>(args.workspace);
    rows_ = make_axis(row_sizes(problem, dgrad), memory);
    cols_ = make_axis(col_sizes(problem, dgrad), memory);
    filter_ = reinterpret_cast<T*>(memory);
  }

  // Elements of the filter's copy; none where it is read in place.
  static int64_t filter_size(const Conv2dProblem& problem) {
    return problem.layout == kNhwc || sizeof(E) == 2 ? problem.w_size() : 0;
  }

  static DepthwiseAxisSizes row_sizes(const Conv2dProblem& problem, bool dgrad) {
    const int64_t h = problem.h, p = problem.p();
    return {dgrad ? h : p, dgrad ? p : h, problem.r, problem.stride_h, problem.pad_top, problem.dilation_h, dgrad};
  }
  static DepthwiseAxisSizes col_sizes(const Conv2dProblem& problem, bool dgrad) {
    const int64_t w = problem.w, q = problem.q();
    return {dgrad ? w : q,    dgrad ? q : w,      problem.s, problem.stride_w,
            problem.pad_left, problem.dilation_w, dgrad};
  }

  void run(bool nhwc) {
    if (nhwc) {  // [r][s][channel]: a vector of channels is then one load
      const int64_t taps = taps_r_ * taps_s_;
      for (int64_t k = 0; k < channels_; ++k)
        for (int64_t tap = 0; tap < taps; ++tap) filter_[tap * channels_ + k] = widen(w_[k * taps + tap]);
    } else if constexpr (sizeof(E) == 2) {
      widen_run(w_, channels_ * taps_r_ * taps_s_, filter_);
    }
    const int64_t all_rows = n_ * rows_.outputs * (nhwc ? 1 : channels_);
    const int64_t row_fmas = cols_.outputs * (nhwc ? channels_ : 1) * (taps_r_ * taps_s_ + 1);
    const int64_t unit_rows = 1 + DepthwiseTile::kUnitFmas / row_fmas;
    parallel_for((all_rows + unit_rows - 1) / unit_rows, [&](int64_t unit, int) {
      const int64_t end = (unit + 1) * unit_rows < all_rows ? (unit + 1) * unit_rows : all_rows;
      for (int64_t row = unit * unit_rows; row < end;) {
        const int64_t plane = row / rows_.outputs, h = row % rows_.outputs;
        const int64_t h_end = rows_.outputs < h + end - row ? rows_.outputs : h + end - row;
        for (int64_t phase = 0; phase < cols_.phases; ++phase) {
          if (!nhwc) rows_nchw(plane, h, h_end, phase);
          for (int64_t i = h; nhwc && i < h_end; ++i) row_nhwc(plane, i, phase);
        }
        row += h_end - h;
      }
    });
  }

 private:
  // Calls tap(input row, filter row) for each filter row r that output row h meets inside the input, in order.
  template <class Tap>
  void for_each_row(int64_t h, const Tap& tap) const {
    const int64_t step = rows_.out_step, phase = step == 1 ? 0 : h % step, i = step == 1 ? h : h / step;
    for (const DepthwiseTap* r = rows_.begin(phase); r < rows_.end(phase); ++r)
      if (r->begin <= i && i < r->end) tap(r->first + i * rows_.in_step, r->tap);
  }

  // The lanes of one vector of outputs that have an input at one tap: the same for every row of a plane.
  struct Window {
    int begin, end;
    Mask<T> lanes;
    int64_t tap, first;
  };

  // Rows [h, h_end) of one plane, one phase, one vector of columns after the other, so that the windows are found
  // once.
  void rows_nchw(int64_t plane, int64_t h_begin, int64_t h_end, int64_t phase) const {
    constexpr int kWindows = DepthwiseTile::kWindows;
    const int64_t k = plane % channels_, count = cols_.count(phase), in_step = cols_.in_step,
                  out_step = cols_.out_step;
    const E* in = in_ + plane * in_h_ * in_w_;
    const T* filter = filter_nchw() + k * taps_r_ * taps_s_;
    const DepthwiseTap *s_begin = cols_.begin(phase), *s_end = cols_.end(phase);
    const DepthwiseCommon common(s_begin, s_end);
    const Vec<T> bias = broadcast<T>(bias_ ? widen(bias_[k]) : T(0));
    for (int64_t i = 0; i < count; i += kLanes<T>) {
      const int lanes = int(count - i < kLanes<T> ? count - i : kLanes<T>);
      const bool whole = common.begin <= i && i + kLanes<T> <= common.end;
      Window windows[kWindows];
      int found = 0;
      const auto find = [&](const DepthwiseTap* s) {  // windows of s, s + 1, ...; returns the first tap left out
        for (found = 0; s < s_end && found < kWindows; ++s) {
          const int begin = int(s->begin > i ? s->begin - i < kLanes<T> ? s->begin - i : kLanes<T> : 0);
          const int end = int(s->end - i < lanes ? s->end - i : lanes);
          if (begin < end)
            windows[found++] = {begin, end, lanes_between<T>(begin, end), s->tap, s->first + i * in_step};
        }
        return s;
      };
      const bool one_set = find(s_begin) == s_end;
      for (int64_t h = h_begin; h < h_end; ++h) {
        Vec<T> sum = bias;
        const DepthwiseTap* rest = s_begin;
        do {
          rest = one_set ? s_end : find(rest);
          for_each_row(h, [&](int64_t row, int64_t r) {
            const E* from = in + row * in_w_;
            const T* weights = filter + r * taps_s_;
            const auto add = [&](auto taps) {  // a constant count unrolls the common filters, 3 and 5 wide
              for (int j = 0; j < taps; ++j) {
                const Window& window = windows[j];
                const Vec<T> weight = broadcast<T>(weights[window.tap]);
                if (whole && in_step == 1)
                  sum += weight * load(from + window.first);
                else
                  sum = select<T>(
                      window.lanes,
                      sum + weight * load_lanes(from + window.first, in_step, window.begin, window.end), sum);
              }
            };
            if (found == 3)
              add(std::integral_constant<int, 3>{});
            else if (found == 5)
              add(std::integral_constant<int, 5>{});
            else
              add(found);
          });
        } while (rest < s_end);
        E* out = out_ + (plane * rows_.outputs + h) * cols_.outputs + phase + i * out_step;
        if (out_step > 1) {
          T values[kLanes<T>];
          store<T>(values, sum);
          for (int lane = 0; lane < lanes; ++lane) out[lane * out_step] = narrow<E>(values[lane]);
        } else if (lanes == kLanes<T>) {
          store<E>(out, sum);
        } else {
          store_partial<E>(out, sum, lanes);
        }
      }
    }
  }

  void row_nhwc(int64_t n, int64_t h, int64_t phase) const {
    constexpr int kPixels = DepthwiseTile::kPixels;
    const int64_t count = cols_.count(phase);
    const DepthwiseCommon common(cols_.begin(phase), cols_.end(phase));
    for (int64_t i = 0; i < count;) {
      const bool wide = common.begin <= i && i + kPixels <= common.end;
      for (int64_t k = 0; k < channels_; k += kLanes<T>) {
        const int lanes = int(channels_ - k < kLanes<T> ? channels_ - k : kLanes<T>);
        if (lanes == kLanes<T>)
          wide ? pixels<kPixels, true>(n, h, phase, i, k, lanes) : pixels<1, true>(n, h, phase, i, k, lanes);
        else
          wide ? pixels<kPixels, false>(n, h, phase, i, k, lanes) : pixels<1, false>(n, h, phase, i, k, lanes);
      }
      i += wide ? kPixels : 1;
    }
  }

  // kCount neighbouring outputs of a phase, all inside every tap's range unless there is only one.
  template <int kCount, bool kFull>
  void pixels(int64_t n, int64_t h, int64_t phase, int64_t i, int64_t k, int lanes) const {
    Vec<T> sum[kCount];
    const Vec<T> bias = bias_ ? (kFull ? load(bias_ + k) : load_partial(bias_ + k, lanes)) : Vec<T>{};
    for (int j = 0; j < kCount; ++j) sum[j] = bias;
    const int64_t step = cols_.in_step * channels_;
    for_each_row(h, [&](int64_t row, int64_t r) {
      const E* from = in_ + (n * in_h_ + row) * in_w_ * channels_ + i * step + k;
      for (const DepthwiseTap* s = cols_.begin(phase); s < cols_.end(phase); ++s) {
        if (kCount == 1 && (i < s->begin || s->end <= i)) continue;
        const T* weights = filter_ + (r * taps_s_ + s->tap) * channels_ + k;
        const Vec<T> weight = kFull ? load(weights) : load_partial(weights, lanes);
        const E* pixel = from + s->first * channels_;
        for (int j = 0; j < kCount; ++j, pixel += step)
          sum[j] += weight * (kFull ? load(pixel) : load_partial(pixel, lanes));
      }
    });
    E* out = out_ + ((n * rows_.outputs + h) * cols_.outputs + phase + i * cols_.out_step) * channels_ + k;
    for (int j = 0; j < kCount; ++j, out += cols_.out_step * channels_) {
      if (kFull)
        store<E>(out, sum[j]);
      else
        store_partial<E>(out, sum[j], lanes);
    }
  }

  const T* filter_nchw() const {
    if constexpr (sizeof(E) == 2)
      return filter_;
    else
      return w_;
  }

  const E* in_;
  const E* w_;
  const E* bias_;
  E* out_;
  const int64_t n_, channels_, taps_r_, taps_s_, in_h_, in_w_;
  DepthwiseAxis rows_, cols_;
  T* filter_;  // nhwc: [r][s][channel]; nchw, 16 bits: [channel][r][s]
};

template <bool kDgrad>
void run(const Conv2dProblem& problem, const Conv2dArgs& args) {
  with_element(problem.dtype, [&](auto element) {
    Depthwise<decltype(element)>(problem, args, kDgrad).run(problem.layout == kNhwc);
  });
}

template <bool kDgrad>
int64_t workspace(const Conv2dProblem& problem, int) {
  if (!is_depthwise(problem)) return -1;
  return with_element(problem.dtype, [&](auto element) {
    using E = decltype(element);
    return Depthwise<E>::row_sizes(problem, kDgrad).bytes() + Depthwise<E>::col_sizes(problem, kDgrad).bytes() +
           Depthwise<E>::filter_size(problem) * int64_t(sizeof(Accumulator<E>));
  });
}
PYCONV_CPU_KERNEL("conv2d.fprop.depthwise", run<false>, workspace<false>)
PYCONV_CPU_KERNEL("conv2d.dgrad.depthwise", run<true>, workspace<true>)

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
