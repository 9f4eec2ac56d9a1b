// How the direct weight gradient cuts a problem up. Everything here comes from the problem alone, never from the
// threads, so the order of every sum does too.
//
//   panel   kc filters x mc channels x rc filter rows of one group: a block of dw that fits the second-level cache
//   chunk   ni images x np rows x nq columns of y: one partial sum, whose packed x and dy fit that cache too
//   split   a run of chunks; a panel has several only where panels alone are too few units to share among threads.
//           Each split owns a copy of its panel; the copies are added in order at the end.
#pragma once
#include <numeric>

#include "direct_wgrad_tile.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

struct WgradBlocking {
  static constexpr int64_t kPixels = 512;  // of a chunk: each accumulator update costs 1/512 of its FMAs
  static constexpr int64_t kPanelElements =
      80000;  // of dw: 3x3 x 128 x 64 is 288 KiB in float, of a second-level cache of 1 MiB
  static constexpr int64_t kPackedElements = 65536;  // of x, and of dy, in one chunk: a quarter each
  static constexpr int64_t kPanelSide = 256;         // most filters, and most channels, of a panel
  static constexpr int64_t kUnits = 16;              // units wanted: twice the threads of an 8-core machine
  static constexpr int64_t kUnitFlops = 2 << 20;     // least work of a unit, ~20 us: starting a thread costs ~5 us
  static constexpr int64_t kSplitBytes = 16 << 20;   // most memory spent on the splits' copies
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};
// The i-th of `count` parts of `whole`, whose sizes differ by at most one.
inline Range part(int64_t whole, int64_t count, int64_t i) { return {whole * i / count, whole * (i + 1) / count}; }
// The i-th block of `size`.
inline Range block(int64_t whole, int64_t size, int64_t i) { return {i * size, smaller(whole, (i + 1) * size)}; }

// One spatial axis in packed positions: position j is element j*step - pad of x. With step = gcd(stride, dilation)
// no element is packed that no tap reads, where stride and dilation share a factor or there is one tap.
struct WgradAxis {
  int64_t pad, step, stride, dilation;  // output i and tap t meet at position i*stride + t*dilation
  int64_t low, high;                    // positions inside the image

  WgradAxis(int64_t extent, int64_t pad_before, int64_t taps, int64_t full_stride, int64_t full_dilation)
      : pad(pad_before),
        step(taps == 1 ? full_stride : std::gcd(full_stride, full_dilation)),
        stride(full_stride / step),
        dilation(taps == 1 ? 0 : full_dilation / step),
        low(ceil_div(pad, step)),
        high(ceil_div(extent + pad, step)) {}

  // The outputs of `range` whose tap t lies inside the image.
  Range outputs(Range range, int64_t t) const {
    const int64_t begin = larger(range.begin, ceil_div(larger(0, low - t * dilation), stride));
    const int64_t end = smaller(range.end, ceil_div(larger(0, high - t * dilation), stride));
    return {begin, larger(begin, end)};
  }
  // The positions inside the image that `outputs` and `taps` can meet at.
  Range positions(Range outputs, Range taps) const {
    const int64_t begin = larger(low, outputs.begin * stride + taps.begin * dilation);
    const int64_t end = smaller(high, (outputs.end - 1) * stride + (taps.end - 1) * dilation + 1);
    return {begin, larger(begin, end)};
  }
  int64_t most_positions(int64_t outputs, int64_t taps) const {
    return smaller(high - low, (outputs - 1) * stride + (taps - 1) * dilation + 1);
  }
};

template <class T>
struct WgradPlan {
  static constexpr int64_t kBlock = WgradTile::kNr * kLanes<T>;  // filters of one register tile
  // A pixel of a channel tile in the packed x: whole vectors, so that each is one store, and aligned.
  static constexpr int64_t kTilePitch = (WgradTile::kMr + kLanes<T> - 1) / kLanes<T> * kLanes<T>;

  WgradAxis rows, cols;
  int64_t group_c, group_k, p, q;
  bool merged;  // few channels: the register tile runs over (s, c), adjacent in the packed x
  int64_t kc, mc, rc, k_panels, c_panels, r_panels, panels;
  int64_t ni, np, nq, n_chunks, p_chunks, q_chunks, chunks, splits;
  int64_t acc_stride;                                 // of one (r, s, c) row of a panel, in elements
  int64_t x_tile, x_elements, dy_block, dy_elements;  // packed sizes
  int64_t panel_elements;

  explicit WgradPlan(const Conv2dProblem& problem)
      : rows(problem.h, problem.pad_top, problem.r, problem.stride_h, problem.dilation_h),
        cols(problem.w, problem.pad_left, problem.s, problem.stride_w, problem.dilation_w),
        group_c(problem.group_c()),
        group_k(problem.group_k()),
        p(problem.p()),
        q(problem.q()) {
    using B = WgradBlocking;
    merged = problem.s > 1 && cols.dilation == 1 && group_c <= WgradTile::kMr / 2;

    // Panels: square-ish, as each operand is packed once for each panel of the other.
    kc = smaller(group_k, B::kPanelSide);
    mc = merged ? group_c : smaller(group_c, B::kPanelSide);
    rc = problem.r;
    const auto too_large = [&](int64_t most) { return kc * mc * rc * problem.s > most; };
    const auto halve = [&](int64_t least) {
      if (kc >= mc && kc > least * kBlock)
        kc = round_up(ceil_div(kc, 2), kBlock);
      else if (!merged && mc > least * WgradTile::kMr)
        mc = ceil_div(mc, 2);
      else if (kc > least * kBlock)
        kc = round_up(ceil_div(kc, 2), kBlock);
      else
        return false;
      return true;
    };
    while (too_large(B::kPanelElements) && halve(2)) {
    }
    if (too_large(B::kPanelElements)) rc = larger(1, B::kPanelElements / (kc * mc * problem.s));
    rc = ceil_div(problem.r, ceil_div(problem.r, rc));

    // Chunks: whole images if they are small, else rows, else pieces of a row.
    nq = q <= B::kPixels ? q : ceil_div(q, ceil_div(q, B::kPixels));
    np = larger(1, smaller(p, B::kPixels / larger(1, nq)));
    if (p > 0) np = ceil_div(p, ceil_div(p, np));
    ni = np == p && nq == q ? larger(1, smaller(problem.n, B::kPixels / larger(1, np * nq))) : 1;
    const auto packed_x = [&] {
      return ni * rows.most_positions(np, rc) * cols.most_positions(nq, problem.s) * mc;
    };
    while (packed_x() > B::kPackedElements || ni * np * nq * kc > B::kPackedElements) {
      int64_t& side = ni > 1 ? ni : np > 1 ? np : nq;
      if (side <= 1 || (side == nq && nq <= WgradTile::kMr)) break;
      side = ceil_div(side, 2);
    }
    const bool empty = problem.n * p * q == 0;
    n_chunks = empty ? 0 : ceil_div(problem.n, ni);
    p_chunks = empty ? 0 : ceil_div(p, np);
    q_chunks = empty ? 0 : ceil_div(q, nq);
    chunks = n_chunks * p_chunks * q_chunks;

    // Units: panels, then splits.
    const int64_t flops = 2 * problem.n * p * q * problem.k * group_c * problem.r * problem.s;
    const int64_t units = larger(1, smaller(B::kUnits, flops / B::kUnitFlops));
    const auto count_panels = [&] {
      k_panels = ceil_div(group_k, kc);
      c_panels = ceil_div(group_c, mc);
      r_panels = ceil_div(problem.r, rc);
      panels = problem.groups * k_panels * c_panels * r_panels;
      return panels;
    };
    while (count_panels() * larger(1, chunks) < units && halve(1)) {
    }
    acc_stride = round_up(smaller(kc, group_k), kLanes<T>);
    panel_elements = round_up(rc * problem.s * mc * acc_stride, 64 / int64_t(sizeof(T)));
    const int64_t copies = larger(1, B::kSplitBytes / (panels * panel_elements * int64_t(sizeof(T))));
    splits = larger(1, smaller(smaller(units / panels, chunks), copies));

    x_tile = ni * rows.most_positions(np, rc) * cols.most_positions(nq, problem.s) * (merged ? mc : kTilePitch);
    x_elements = round_up(x_tile * channel_tiles(mc), 64 / int64_t(sizeof(T)));
    dy_block = ni * np * nq * kBlock;
    dy_elements = round_up(dy_block * ceil_div(kc, kBlock), 64 / int64_t(sizeof(T)));
  }

  int64_t channel_tiles(int64_t channels) const { return merged ? 1 : ceil_div(channels, WgradTile::kMr); }
  // Scratch of one thread, then the panels' copies: one for each thread where there is nothing to add up.
  int64_t thread_elements() const { return x_elements + dy_elements; }
  int64_t bytes(int threads) const {
    return (threads * thread_elements() + (splits == 1 ? threads : panels * splits) * panel_elements) *
           int64_t(sizeof(T));
  }
};

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
