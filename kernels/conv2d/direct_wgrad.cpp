// Direct weight gradient: dw[k,c,r,s] = sum over n, p, q of dy[n,k,p,q] * x[n,c,h,w]
//   with h = p*stride_h - pad_top + r*dilation_h, and only where (h, w) lies inside the image.
//
// Both layouts run the same loops on packed pixels-by-channels panels (direct_wgrad_pack.h), cut up as
// direct_wgrad_plan.h says. For one panel of dw and one chunk of pixels:
//
//   pack     dy -> [block of kBlock filters][pixel][filter]    x -> [tile of mr channels][position][channel]
//   compute  for each filter row r, tap s, channel tile, filter block: one register tile over the pixels of the
//   chunk
//            whose x lies inside the image (direct_wgrad_tile.h), added to the panel [r][s][c][filter]
//   store    after the last chunk: add the splits' panels in order, transpose to dw's layout, round if it is of 16 bits
//
// With few channels (an image's first layer) the register tile runs over (s, c) instead of c, to stay wide; the
// pixels at the borders, which not all of its taps s have, are then done by narrower tiles, one for each s.
#include "direct_wgrad_pack.h"
#include "direct_wgrad_plan.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

// nhwc panels are short runs, one for each pixel: too short for the hardware prefetcher. 8 pixels ahead covers the
// third-level cache's latency; a prefetch past the end of a tensor is harmless.
constexpr int64_t kPrefetchPixels = 8;

template <class E>
class DirectWgrad {
 public:
  using T = Accumulator<E>;

  DirectWgrad(const Conv2dProblem& problem, const Conv2dArgs& args)
      : problem_(problem),
        plan_(problem),
        x_(static_cast<const E*>(args.a)),
        dy_(static_cast<const E*>(args.b)),
        dw_(static_cast<E*>(args.out)),
        workspace_(static_cast<T*>(args.workspace)),
        nhwc_(problem.layout == kNhwc) {}

  void run() {
    T* copies = workspace_ + num_threads() * plan_.thread_elements();
    // Splits of one panel are panels apart, so that threads running side by side read the same pixels.
    parallel_for(plan_.panels * plan_.splits, [&](int64_t unit, int thread) {
      const Panel panel = panel_at(unit % plan_.panels);
      T* acc = copies + (plan_.splits == 1 ? thread : unit) * plan_.panel_elements;
      T* scratch = workspace_ + thread * plan_.thread_elements();
      accumulate(panel, part(plan_.chunks, plan_.splits, unit / plan_.panels), scratch, acc);
      if (plan_.splits > 1) return;
      for (int64_t k = 0; k < panel.k.size(); k += kLanes<T>) write(panel, k, acc);
    });
    if (plan_.splits == 1) return;
    const int64_t slices = ceil_div(smaller(plan_.kc, plan_.group_k), kLanes<T>);
    parallel_for(plan_.panels * slices, [&](int64_t index, int) {
      const Panel panel = panel_at(index / slices);
      const int64_t k = index % slices * kLanes<T>;
      if (k < panel.k.size()) write(panel, k, copies + index / slices * plan_.panel_elements);
    });
  }

 private:
  using Plan = WgradPlan<T>;
  struct Panel {
    int64_t group;
    Range k, c, r;  // k and c within the group
  };
  struct Chunk {
    Range n, p, q;
    Range rows, cols;  // packed positions of x
  };

  Panel panel_at(int64_t index) const {
    const int64_t r = index % plan_.r_panels, c = index / plan_.r_panels % plan_.c_panels;
    const int64_t k = index / (plan_.r_panels * plan_.c_panels) % plan_.k_panels;
    return {index / (plan_.r_panels * plan_.c_panels * plan_.k_panels), block(plan_.group_k, plan_.kc, k),
            block(plan_.group_c, plan_.mc, c), block(problem_.r, plan_.rc, r)};
  }

  void accumulate(const Panel& panel, Range chunks, T* scratch, T* acc) const {
    for (int64_t i = 0; i < plan_.panel_elements; ++i) acc[i] = 0;
    T* x = scratch;
    T* dy = scratch + plan_.x_elements;
    for (int64_t index = chunks.begin; index < chunks.end; ++index) {
      Chunk chunk{block(problem_.n, plan_.ni, index / (plan_.q_chunks * plan_.p_chunks)),
                  block(plan_.p, plan_.np, index / plan_.q_chunks % plan_.p_chunks),
                  block(plan_.q, plan_.nq, index % plan_.q_chunks),
                  {},
                  {}};
      chunk.rows = plan_.rows.positions(chunk.p, panel.r);
      chunk.cols = plan_.cols.positions(chunk.q, {0, problem_.s});
      if (chunk.rows.size() == 0 || chunk.cols.size() == 0) continue;
      pack_dy(panel, chunk, dy);
      pack_x(panel, chunk, x);
      compute(panel, chunk, x, dy, acc);
    }
  }

  // ---- pack ----

  int64_t vectors_of(const Panel& panel, int64_t k_block) const {
    return smaller(WgradTile::kNr, ceil_div(panel.k.size() - k_block * Plan::kBlock, kLanes<T>));
  }

  void pack_dy(const Panel& panel, const Chunk& chunk, T* to) const {
    const int64_t plane = plan_.p * plan_.q, k_first = panel.group * plan_.group_k + panel.k.begin;
    // Whole rows follow one another in memory: one run for each image.
    const bool whole = chunk.q.size() == plan_.q;
    const int64_t run = whole ? chunk.p.size() * plan_.q : chunk.q.size();
    const int64_t blocks = ceil_div(panel.k.size(), Plan::kBlock);
    int64_t packed = 0;  // pixels
    for (int64_t n = chunk.n.begin; n < chunk.n.end; ++n) {
      for (int64_t p = chunk.p.begin; p < (whole ? chunk.p.begin + 1 : chunk.p.end); ++p, packed += run) {
        const int64_t pixel = p * plan_.q + chunk.q.begin;
        if (nhwc_) {
          const E* from = dy_ + (n * plane + pixel) * problem_.k + k_first;
          for (int64_t i = 0; i < run; ++i, from += problem_.k) {
            for (int64_t b = 0; b < blocks; ++b) {
              const int64_t k = b * Plan::kBlock, width = vectors_of(panel, b) * kLanes<T>;
              __builtin_prefetch(from + k + kPrefetchPixels * problem_.k);
              pack_pixel(from + k, smaller(width, panel.k.size() - k), problem_.k - k_first - k,
                         to + b * plan_.dy_block + (packed + i) * width, width);
            }
          }
        } else {
          for (int64_t b = 0; b < blocks; ++b) {
            const int64_t width = vectors_of(panel, b) * kLanes<T>;
            for (int64_t j = 0; j < width; j += kLanes<T>) {
              const int64_t k = b * Plan::kBlock + j;
              pack_transposed(dy_ + (n * problem_.k + k_first + k) * plane + pixel, plane, 1, panel.k.size() - k,
                              run, to + b * plan_.dy_block + packed * width + j, width);
            }
          }
        }
      }
    }
  }

  void pack_x(const Panel& panel, const Chunk& chunk, T* to) const {
    const int64_t tiles = plan_.channel_tiles(panel.c.size()), mr = ceil_div(panel.c.size(), tiles);
    const int64_t c_first = panel.group * plan_.group_c + panel.c.begin;
    const int64_t pitch = plan_.merged ? plan_.mc : Plan::kTilePitch, step = plan_.cols.step;
    const int64_t w_first = chunk.cols.begin * step - plan_.cols.pad, count = chunk.cols.size();
    for (int64_t n = chunk.n.begin; n < chunk.n.end; ++n) {
      for (int64_t row = chunk.rows.begin; row < chunk.rows.end; ++row, to += count * pitch) {
        const int64_t h = row * plan_.rows.step - plan_.rows.pad;
        if (nhwc_) {
          const E* from = x_ + ((n * problem_.h + h) * problem_.w + w_first) * problem_.c + c_first;
          if (plan_.merged) {
            pack_merged(from, 1, step * problem_.c, count, to);
            continue;
          }
          for (int64_t i = 0; i < count; ++i, from += step * problem_.c) {
            for (int64_t t = 0; t < tiles; ++t) {
              const Range c = block(panel.c.size(), mr, t);
              __builtin_prefetch(from + c.begin + kPrefetchPixels * step * problem_.c);
              pack_pixel(from + c.begin, c.size(), problem_.c - c_first - c.begin,
                         to + t * plan_.x_tile + i * pitch, pitch);
            }
          }
        } else {
          const int64_t plane = problem_.h * problem_.w;
          const E* from = x_ + (n * problem_.c + c_first) * plane + h * problem_.w + w_first;
          if (plan_.merged) {
            pack_merged(from, plane, step, count, to);
            continue;
          }
          for (int64_t t = 0; t < tiles; ++t) {
            const Range c = block(panel.c.size(), mr, t);
            for (int64_t j = 0; j < pitch; j += kLanes<T>)
              pack_transposed(from + (c.begin + j) * plane, plane, step, c.size() - j, count,
                              to + t * plan_.x_tile + j, pitch);
          }
        }
      }
    }
  }

  // A few channels of each position: to[i][c] = from[i*position_stride + c*channel_stride].
  void pack_merged(const E* from, int64_t channel_stride, int64_t position_stride, int64_t count, T* to) const {
    const int64_t channels = plan_.mc;
    if (position_stride == channels && (channel_stride == 1 || channels == 1)) {
      widen_run(from, count * channels, to);
      return;
    }
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t i = 0; i < count; ++i)
        to[i * channels + c] = widen(from[c * channel_stride + i * position_stride]);
  }

  // ---- compute ----

  void compute(const Panel& panel, const Chunk& chunk, const T* x, const T* dy, T* acc) const {
    const int64_t run = plan_.merged ? problem_.s * plan_.mc : panel.c.size();  // what register tiles divide
    const int64_t tiles = ceil_div(run, WgradTile::kMr), mr = ceil_div(run, tiles);
    for (int64_t r = panel.r.begin; r < panel.r.end; ++r) {
      const Range p = plan_.rows.outputs(chunk.p, r);
      if (p.size() == 0) continue;
      T* acc_r = acc + (r - panel.r.begin) * problem_.s * plan_.mc * plan_.acc_stride;
      for (int64_t s = 0; s < (plan_.merged ? 1 : problem_.s); ++s) {
        for (int64_t t = 0; t < tiles; ++t) {
          const Range m = block(run, mr, t);
          if (!plan_.merged) {
            T* to = acc_r + (s * plan_.mc + m.begin) * plan_.acc_stride;
            tile(panel, chunk, r, s, p, plan_.cols.outputs(chunk.q, s), m.size(), x + t * plan_.x_tile, dy, to);
            continue;
          }
          // Element m is tap s = m / mc of channel m % mc; at column q all taps of the tile are one run of memory.
          const int64_t s_begin = m.begin / plan_.mc, s_end = (m.end - 1) / plan_.mc + 1;
          const Range first = plan_.cols.outputs(chunk.q, s_begin), last = plan_.cols.outputs(chunk.q, s_end - 1);
          const Range common{first.begin, larger(first.begin, last.end)};  // begins fall and ends fall as s grows
          tile(panel, chunk, r, s_begin, p, common, m.size(), x + m.begin % plan_.mc, dy,
               acc_r + m.begin * plan_.acc_stride);
          for (int64_t tap = s_begin; tap < s_end; ++tap) {
            const Range q = plan_.cols.outputs(chunk.q, tap);
            const int64_t begin = larger(m.begin, tap * plan_.mc), end = smaller(m.end, (tap + 1) * plan_.mc);
            const T* from = x + begin % plan_.mc;
            T* to = acc_r + begin * plan_.acc_stride;
            const Range left{q.begin, smaller(q.end, common.begin)}, right{larger(q.begin, common.end), q.end};
            tile(panel, chunk, r, tap, p, left, end - begin, from, dy, to);
            tile(panel, chunk, r, tap, p, right, end - begin, from, dy, to);
          }
        }
      }
    }
  }

  // One register tile for each block of filters: x is the packed x at position (0, 0), channel 0 of the tile.
  void tile(const Panel& panel, const Chunk& chunk, int64_t r, int64_t s, Range p, Range q, int64_t mr, const T* x,
            const T* dy, T* acc) const {
    if (q.size() <= 0 || p.size() <= 0) return;
    const int64_t pitch = plan_.merged ? plan_.mc : Plan::kTilePitch, x_row = chunk.cols.size() * pitch;
    const int64_t row = p.begin * plan_.rows.stride + r * plan_.rows.dilation - chunk.rows.begin;
    const int64_t col = q.begin * plan_.cols.stride + s * plan_.cols.dilation - chunk.cols.begin;
    const int64_t blocks = ceil_div(panel.k.size(), Plan::kBlock);
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t vectors = vectors_of(panel, b), width = vectors * kLanes<T>;
      const int64_t dy_row = chunk.q.size() * width;
      const WgradPixels pixels{chunk.n.size(),
                               p.size(),
                               q.size(),
                               chunk.rows.size() * x_row,
                               plan_.rows.stride * x_row,
                               plan_.cols.stride * pitch,
                               chunk.p.size() * dy_row,
                               dy_row};
      const int64_t dy_first = (p.begin - chunk.p.begin) * dy_row + (q.begin - chunk.q.begin) * width;
      wgrad_tile_for<T>(mr, vectors)(pixels, x + row * x_row + col * pitch, dy + b * plan_.dy_block + dy_first,
                                     acc + b * Plan::kBlock, plan_.acc_stride);
    }
  }

  // ---- store ----

  // dw of one vector of filters of a panel, from its splits' copies: a transpose of [r][s][c][k] to rows of k.
  void write(const Panel& panel, int64_t k, const T* copies) const {
    const int64_t taps = panel.r.size() * problem_.s, all_taps = problem_.r * problem_.s,
                  channels = panel.c.size();
    const int64_t filter = plan_.group_c * all_taps;  // elements of dw for one k
    const int64_t split_stride = plan_.panels * plan_.panel_elements;
    const int filters = int(smaller(kLanes<T>, panel.k.size() - k));
    E* dw = dw_ + (panel.group * plan_.group_k + panel.k.begin + k) * filter;
    // The panel's elements of one filter in the order of dw, in runs that are contiguous there.
    const bool one_run = nhwc_ ? channels == plan_.group_c : taps == all_taps;
    const int64_t run = one_run ? taps * channels : nhwc_ ? channels : taps;
    for (int64_t first = 0; first < taps * channels; first += run) {
      const int64_t c = nhwc_ ? 0 : first / taps, tap = nhwc_ ? first / channels : 0;
      E* to = nhwc_ ? dw + (panel.r.begin * problem_.s + tap) * plan_.group_c + panel.c.begin
                    : dw + (panel.c.begin + c) * all_taps + panel.r.begin * problem_.s;
      for (int64_t i = 0; i < run; i += kLanes<T>) {
        const int count = int(smaller(kLanes<T>, run - i));
        Vec<T> rows[kLanes<T>] = {};
        for (int lane = 0; lane < count; ++lane) {
          const int64_t e = first + i + lane;
          const int64_t row = nhwc_ ? e / channels * plan_.mc + e % channels : e % taps * plan_.mc + e / taps;
          const T* from = copies + row * plan_.acc_stride + k;
          rows[lane] = load(from);
          for (int64_t split = 1; split < plan_.splits; ++split) rows[lane] += load(from + split * split_stride);
        }
        transpose<T>(rows);
        for (int filter_lane = 0; filter_lane < filters; ++filter_lane)
          store_partial(to + filter_lane * filter + i, rows[filter_lane], count);
      }
    }
  }

  const Conv2dProblem& problem_;
  const Plan plan_;
  const E* x_;
  const E* dy_;
  E* dw_;
  T* workspace_;
  const bool nhwc_;
};

void direct_wgrad(const Conv2dProblem& problem, const Conv2dArgs& args) {
  with_element(problem.dtype, [&](auto element) { DirectWgrad<decltype(element)>(problem, args).run(); });
}

int64_t direct_wgrad_workspace(const Conv2dProblem& problem, int threads) {
  return problem.dtype == kFloat64 ? WgradPlan<double>(problem).bytes(threads)
                                   : WgradPlan<float>(problem).bytes(threads);
}
PYCONV_CPU_KERNEL("conv2d.wgrad.direct", direct_wgrad, direct_wgrad_workspace)

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
