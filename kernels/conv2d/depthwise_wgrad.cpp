// Depthwise weight gradient, one filter per channel (groups == c == k):
//   dw[k,r,s] = sum over n, p, q of dy[n,k,p,q] * x[n,k,h,w]      h = p*stride_h - pad_top + r*dilation_h
// and only where (h, w) lies inside the image, so no padding is ever multiplied with dy.
//
//   nchw   a vector is kLanes pixels of one row; a unit is one channel of a chunk of images
//   nhwc   a vector is kLanes channels of one pixel; a unit is a chunk of the n*p rows of dy
//
// In both, one load of dy feeds the kTaps neighbouring taps s of a register tile, for one filter row r. A register
// sums at most an image's plane (nchw) or a row (nhwc); those sums are added one by one, and the chunks', which
// come from the problem alone, last: the rounding error grows with those counts and not with n*p*q. Elements E of 16
// bits are widened when loaded; all sums are of T, a float, and dw is rounded once.
#include "depthwise_axis.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

struct DepthwiseWgradTile {
  static constexpr int kTaps = 5;                // a row of the common filters, 3 and 5 wide
  static constexpr int64_t kUnits = 16;          // units wanted: twice the threads of an 8-core machine
  static constexpr int64_t kUnitFmas = 1 << 18;  // least work of a unit, ~20 us
};

inline int64_t chunk_count(const Conv2dProblem& problem) {
  using Tile = DepthwiseWgradTile;
  const bool nhwc = problem.layout == kNhwc;
  const int64_t fmas = problem.y_size() * problem.r * problem.s, most = nhwc ? problem.n * problem.p() : problem.n;
  int64_t chunks = nhwc ? Tile::kUnits : (Tile::kUnits + problem.k - 1) / problem.k;
  if (fmas / Tile::kUnitFmas < chunks) chunks = fmas / Tile::kUnitFmas;
  if (most < chunks) chunks = most;
  return chunks > 0 ? chunks : 1;
}

inline DepthwiseAxisSizes row_sizes(const Conv2dProblem& problem) {
  return {problem.p(), problem.h, problem.r, problem.stride_h, problem.pad_top, problem.dilation_h, false};
}
inline DepthwiseAxisSizes col_sizes(const Conv2dProblem& problem) {
  return {problem.q(), problem.w, problem.s, problem.stride_w, problem.pad_left, problem.dilation_w, false};
}

template <class E>
class DepthwiseWgrad {
 public:
  using T = Accumulator<E>;

  DepthwiseWgrad(const Conv2dProblem& problem, const Conv2dArgs& args)
      : problem_(problem),
        p_(problem.p()),
        q_(problem.q()),
        x_(static_cast<const E*>(args.a)),
        dy_(static_cast<const E*>(args.b)),
        chunks_(chunk_count(problem)) {
    char* memory = static_cast<char*>(args.workspace);
    rows_ = make_axis(row_sizes(problem), memory);
    cols_ = make_axis(col_sizes(problem), memory);
    partial_ = reinterpret_cast<T*>(memory);
  }

  void run(E* dw) {
    const int64_t channels = problem_.k, taps = problem_.r * problem_.s;
    const bool nhwc = problem_.layout == kNhwc;
    const int64_t elements = nhwc ? problem_.n * p_ : problem_.n;  // what the chunks divide
    const int64_t filters = nhwc ? 1 : channels;                   // units of one chunk
    const auto body = [&](int64_t unit, int) {
      const int64_t chunk = unit / filters, k = unit % filters;
      T* partial = partial_ + (chunk * filters + k) * (nhwc ? channels : 1) * taps;
      for (int64_t i = 0; i < (nhwc ? channels : 1) * taps; ++i) partial[i] = 0;
      const int64_t begin = elements * chunk / chunks_, end = elements * (chunk + 1) / chunks_;
      if (nhwc) {
        for (int64_t row = begin; row < end; ++row) row_nhwc(row / p_, row % p_, partial);
        return;
      }
      for (const DepthwiseTap* r = rows_.begin(0); r < rows_.end(0); ++r)
        for_each_taps([&](const DepthwiseTap* s, auto count) { images<count>(k, begin, end, *r, s, partial); });
    };
    parallel_for(chunks_ * filters, body);
    // partial is [chunk][k][r][s] (nchw) or [chunk][r][s][k] (nhwc); dw is [k][r][s] in both.
    for (int64_t k = 0; k < channels; ++k) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        const T* from = partial_ + (nhwc ? tap * channels + k : k * taps + tap);
        T sum = from[0];
        for (int64_t chunk = 1; chunk < chunks_; ++chunk) sum += from[chunk * channels * taps];
        dw[k * taps + tap] = narrow<E>(sum);
      }
    }
  }

 private:
  // Calls tile(first tap, count as a constant) for the taps s, kTaps at a time.
  template <class Tile>
  void for_each_taps(const Tile& tile) const {
    for (const DepthwiseTap* s = cols_.begin(0); s < cols_.end(0); s += DepthwiseWgradTile::kTaps) {
      static_assert(DepthwiseWgradTile::kTaps == 5, "the cases below");
      switch (cols_.end(0) - s) {
        case 1: tile(s, std::integral_constant<int, 1>{}); break;
        case 2: tile(s, std::integral_constant<int, 2>{}); break;
        case 3: tile(s, std::integral_constant<int, 3>{}); break;
        case 4: tile(s, std::integral_constant<int, 4>{}); break;
        default: tile(s, std::integral_constant<int, 5>{}); break;
      }
    }
  }

  // nchw: kTaps taps of one filter row r of one channel, over images [n, n_end).
  template <int kTaps>
  void images(int64_t k, int64_t n, int64_t n_end, const DepthwiseTap& r, const DepthwiseTap* s,
              T* partial) const {
    const DepthwiseCommon common(s, s + kTaps);
    Vec<T> total[kTaps] = {};
    for (; n < n_end; ++n) {
      Vec<T> sum[kTaps] = {};
      for (int64_t p = r.begin; p < r.end; ++p) {
        const E* dy = dy_ + ((n * problem_.k + k) * p_ + p) * q_;
        const E* x = x_ + ((n * problem_.k + k) * problem_.h + r.first + p * rows_.in_step) * problem_.w;
        for (int64_t q = 0; q < q_; q += kLanes<T>) {
          const int lanes = int(q_ - q < kLanes<T> ? q_ - q : kLanes<T>);
          if (cols_.in_step == 1 && common.begin <= q && q + kLanes<T> <= common.end) {
            const Vec<T> gradient = load(dy + q);
            for (int j = 0; j < kTaps; ++j) sum[j] += gradient * load(x + s[j].first + q);
            continue;
          }
          const Vec<T> gradient = load_partial(dy + q, lanes);
          for (int j = 0; j < kTaps; ++j) {
            const int begin = int(s[j].begin > q ? s[j].begin - q < kLanes<T> ? s[j].begin - q : kLanes<T> : 0);
            const int end = int(s[j].end - q < lanes ? s[j].end - q : lanes);
            if (begin >= end) continue;
            const Vec<T> value = load_lanes(x + s[j].first + q * cols_.in_step, cols_.in_step, begin, end);
            sum[j] = select<T>(lanes_between<T>(begin, end), sum[j] + gradient * value, sum[j]);
          }
        }
      }
      for (int j = 0; j < kTaps; ++j) total[j] += sum[j];
    }
    for (int j = 0; j < kTaps; ++j) partial[r.tap * problem_.s + s[j].tap] = horizontal_sum<T>(total[j]);
  }

  // nhwc: every filter's taps over one row of dy.
  void row_nhwc(int64_t n, int64_t p, T* partial) const {
    for (int64_t k = 0; k < problem_.k; k += kLanes<T>) {
      const int lanes = int(problem_.k - k < kLanes<T> ? problem_.k - k : kLanes<T>);
      const E* dy = dy_ + (n * p_ + p) * q_ * problem_.k + k;
      for (const DepthwiseTap* r = rows_.begin(0); r < rows_.end(0); ++r) {
        if (p < r->begin || r->end <= p) continue;
        const E* x = x_ + (n * problem_.h + r->first + p * rows_.in_step) * problem_.w * problem_.k + k;
        T* to = partial + r->tap * problem_.s * problem_.k + k;
        for_each_taps([&](const DepthwiseTap* s, auto count) {
          lanes == kLanes<T> ? pixels<count, true>(x, dy, s, to, lanes)
                             : pixels<count, false>(x, dy, s, to, lanes);
        });
      }
    }
  }

  template <int kTaps, bool kFull>
  void pixels(const E* x, const E* dy, const DepthwiseTap* s, T* to, int lanes) const {
    const int64_t channels = problem_.k, step = cols_.in_step * channels;
    const auto get = [lanes](const E* from) { return kFull ? load(from) : load_partial(from, lanes); };
    const DepthwiseCommon common(s, s + kTaps);
    Vec<T> sum[kTaps] = {};
    for (int64_t q = common.begin; q < common.end; ++q) {
      const Vec<T> gradient = get(dy + q * channels);
      for (int j = 0; j < kTaps; ++j) sum[j] += gradient * get(x + s[j].first * channels + q * step);
    }
    for (int j = 0; j < kTaps; ++j) {  // the columns at the borders that not all taps have
      const auto add = [&](int64_t begin, int64_t end) {
        for (int64_t q = begin; q < end; ++q)
          sum[j] += get(dy + q * channels) * get(x + s[j].first * channels + q * step);
      };
      add(s[j].begin, s[j].end < common.begin ? s[j].end : common.begin);
      add(s[j].begin > common.end ? s[j].begin : common.end, s[j].end);
      T* row = to + s[j].tap * channels;
      if (kFull)
        store<T>(row, load(row) + sum[j]);
      else
        store_partial(row, load_partial(row, lanes) + sum[j], lanes);
    }
  }

  const Conv2dProblem& problem_;
  const int64_t p_, q_;
  const E* x_;
  const E* dy_;
  const int64_t chunks_;
  DepthwiseAxis rows_, cols_;
  T* partial_;
};

void depthwise_wgrad(const Conv2dProblem& problem, const Conv2dArgs& args) {
  with_element(problem.dtype, [&](auto element) {
    using E = decltype(element);
    DepthwiseWgrad<E>(problem, args).run(static_cast<E*>(args.out));
  });
}

int64_t depthwise_wgrad_workspace(const Conv2dProblem& problem, int) {
  if (!is_depthwise(problem)) return -1;
  return row_sizes(problem).bytes() + col_sizes(problem).bytes() +
         chunk_count(problem) * problem.w_size() * int64_t(problem.dtype == kFloat64 ? 8 : 4);
}
PYCONV_CPU_KERNEL("conv2d.wgrad.depthwise", depthwise_wgrad, depthwise_wgrad_workspace)

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
