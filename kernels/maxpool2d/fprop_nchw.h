// Max-pooling forward, nchw:
//   y[n,c,p,q] = max over r, s of x[n,c,h,w]      h = p*stride_h - pad_top + r*dilation_h, w alike
//   argmax[n,c,p,q] = h*W + w of that element
//
// A vector holds kLanes windows that are neighbours along q. Stage 1 takes the maximum over s within one row h
// (lanes at stride 2 come from splitting two loads into even and odd elements), stage 2 the maximum over the
// rows. Rows before columns, not the cheaper other way round, because ties and NaNs resolve in row-major order.
// Where windows of 3 rows overlap, the block walks down p and keeps the rows it meets again in registers.
#pragma once
#include "units.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

// Output rows that one walk covers: the walk re-reads stride_h..2 rows at its start, and the rows it touches
// (2*kWalk + 1 at most) should stay in L1 while the blocks along q pass over them.
constexpr int64_t kWalk = 8;

// The columns of x that kLanes windows of one row read. kS taps (0: known at run time) at kStride (0: any).
// kInside: every load lies within the row. Otherwise the masks say which lanes exist.
template <class T, bool kArgmax, int kS, int kStride, bool kInside>
struct Columns {
  static constexpr int kMasks = kStride == 2 ? (kS + 1) / 2 * 2 : kS;
  int64_t w, extent, taps, stride, dilation;  // w: tap 0 of lane 0
  Lanes<T> masks[kMasks > 0 ? kMasks : 1];
  Places<T> first = {};  // kArgmax: column of each lane's first tap inside the row, or -1

  Columns(const Pool2dProblem& problem, int64_t q)
      : w(q * problem.stride_w - problem.pad_left),
        extent(problem.w),
        taps(kS ? kS : problem.s),
        stride(kStride ? kStride : problem.stride_w),
        dilation(kStride == 2 ? 1 : problem.dilation_w) {
    if constexpr (!kInside && kS > 0 && kStride == 1)
      for (int s = 0; s < kS; ++s) masks[s] = present(w + s * dilation);
    if constexpr (!kInside && kS > 0 && kStride == 2)
      for (int i = 0; i < kMasks; ++i) masks[i] = present(w + i / 2 * 2 + i % 2 * kLanes<T>);
    if constexpr (kArgmax) {
      first = tap_places(0);
      if constexpr (!kInside) {
        first = broadcast_place<T>(-1);
        for (int64_t s = taps - 1; s >= 0; --s) {
          const int64_t from = w + s * dilation;  // lane l reads from + l*stride, which exists for:
          const int64_t begin = from >= 0 ? 0 : (-from + stride - 1) / stride;
          const int64_t end = from >= extent ? 0 : (extent - from + stride - 1) / stride;
          first = choose_places<T>(lanes_between<T>(begin, end), tap_places(s), first);
        }
      }
    }
  }

  // True if blocks at q may take kInside.
  static bool inside(const Pool2dProblem& problem, int64_t q) {
    const int64_t w = q * problem.stride_w - problem.pad_left, taps = kS ? kS : problem.s;
    const int64_t last = kStride == 2 ? w + (taps - 1) / 2 * 2 + 2 * kLanes<T> - 1
                                      : w + (kLanes<T> - 1) * problem.stride_w + (taps - 1) * problem.dilation_w;
    return w >= 0 && last < problem.w;
  }

  Lanes<T> present(int64_t from) const { return lanes_between<T>(-from, extent - from); }
  Places<T> tap_places(int64_t s) const {
    return lane_numbers<T>() * Place<T>(stride) + Place<T>(w + s * dilation);
  }

  Vec<T> load_at(const T* row, int64_t from, int mask) const {
    if constexpr (kInside) return load(row + from);
    return load_lanes<T>(row + from, kS ? masks[mask] : present(from), kLowest<T>);
  }

  // Stage 1: the maximum over s of the row h, with places in the plane.
  Best<T, kArgmax> over_row(const T* plane, int64_t h) const {
    const T* row = plane + h * extent;
    Best<T, kArgmax> best{broadcast<T>(kLowest<T>), first};
    const auto take = [&](int64_t s, const Vec<T>& value) {
      if (kInside && s == 0) {
        best.value = value;
      } else {
        best.take(value, kArgmax ? tap_places(s) : first);
      }
    };
    if constexpr (kStride == 1) {
      for (int s = 0; s < (kS ? kS : int(taps)); ++s) take(s, load_at(row, w + s * dilation, s));
    } else if constexpr (kStride == 2) {
      for (int s = 0; s < (kS ? kS : int(taps)); s += 2) {
        const Vec<T> low = load_at(row, w + s, s), high = load_at(row, w + s + kLanes<T>, s + 1);
        take(s, even<T>(low, high));
        if (s + 1 < (kS ? kS : int(taps))) take(s + 1, odd<T>(low, high));
      }
    } else {
      for (int64_t s = 0; s < taps; ++s) {
        const int64_t from = w + s * dilation;
        const int64_t begin = from >= 0 ? 0 : (-from + stride - 1) / stride;
        const int64_t end = from >= extent ? 0 : (extent - from + stride - 1) / stride;
        take(s, load_strided<T>(row + from, stride, lanes_between<T>(begin, end)));
      }
    }
    if constexpr (kArgmax) best.place += broadcast_place<T>(h * extent);
    return best;
  }

  void put(Best<T, kArgmax> best, const Output<T>& to, int count) const {
    if constexpr (kArgmax && !kInside) best.place |= first < 0;  // -1 where the window covers nothing
    to.put(best, count);
  }
};

// Stage 2, any window: the rows h_begin, h_begin + dilation_h, ... < h_end of one output row.
template <class T, bool kArgmax, int kS, int kStride, bool kInside>
void one_row(const Pool2dProblem& problem, const T* plane, const Output<T>& to, Taps rows, int64_t p, int64_t q,
             int count) {
  const Columns<T, kArgmax, kS, kStride, kInside> columns(problem, q);
  const int64_t h0 = p * problem.stride_h - problem.pad_top;
  Best<T, kArgmax> best = columns.over_row(plane, h0 + rows.begin * problem.dilation_h);
  for (int64_t r = rows.begin + 1; r < rows.end; ++r) {
    const Best<T, kArgmax> row = columns.over_row(plane, h0 + r * problem.dilation_h);
    best.take(row.value, row.place);
  }
  columns.put(best, to, count);
}

// Stage 2, windows of 3 rows at stride kStride: walks down `rows` output rows from p.
template <class T, bool kArgmax, int kS, int kStride, bool kInside>
void walk_down(const Pool2dProblem& problem, const T* plane, Output<T> to, int64_t p, int64_t rows, int64_t q,
               int64_t y_row, int count) {
  using Row = Best<T, kArgmax>;
  const Columns<T, kArgmax, kS, kStride, kInside> columns(problem, q);
  // A row outside the image never wins. Above the image its place is that of the window's first element.
  const auto row_at = [&](int64_t h) {
    return h >= 0 && h < problem.h ? columns.over_row(plane, h) : Row{broadcast<T>(kLowest<T>), columns.first};
  };
  int64_t h = p * kStride - problem.pad_top;
  Row top = row_at(h), middle = row_at(h + 1);
  for (int64_t i = 0; i < rows; ++i, h += kStride) {
    const Row bottom = row_at(h + 2);
    Row best = top;
    best.take(middle.value, middle.place);
    best.take(bottom.value, bottom.place);
    columns.put(best, to.at(i * y_row), count);
    top = kStride == 1 ? middle : bottom;
    middle = kStride == 1 || i + 1 == rows ? bottom : row_at(h + 3);
  }
}

// Output rows [p_begin, p_end) of one plane.
template <class T, bool kArgmax, int kS, int kStride>
void plane_rows(const Pool2dProblem& problem, const T* plane, const Output<T>& to, int64_t p_begin, int64_t p_end,
                int64_t q_extent) {
  constexpr bool kCanWalk = kS == 3 && kStride > 0;
  const bool walks = kCanWalk && problem.r == 3 && problem.stride_h == kStride && problem.dilation_h == 1;
  for (int64_t p = p_begin; p < p_end;) {
    const int64_t h0 = p * problem.stride_h - problem.pad_top;
    const Taps taps = taps_inside(h0, problem.r, problem.dilation_h, problem.h);
    if (taps.begin >= taps.end) {
      to.at(p * q_extent).put_nothing(q_extent);
      ++p;
      continue;
    }
    // A walk may go on while windows begin inside the image.
    int64_t rows = 1;
    if (walks) {
      rows = (problem.h - 1 - h0) / problem.stride_h + 1;
      rows = rows < p_end - p ? rows : p_end - p;
      rows = rows < kWalk ? rows : kWalk;
    }
    for (int64_t q = 0; q < q_extent; q += kLanes<T>) {
      const int count = int(q_extent - q < kLanes<T> ? q_extent - q : kLanes<T>);
      const Output<T> block = to.at(p * q_extent + q);
      const bool inside = Columns<T, kArgmax, kS, kStride, true>::inside(problem, q);
      if constexpr (kCanWalk) {
        if (walks) {
          inside ? walk_down<T, kArgmax, kS, kStride, true>(problem, plane, block, p, rows, q, q_extent, count)
                 : walk_down<T, kArgmax, kS, kStride, false>(problem, plane, block, p, rows, q, q_extent, count);
          continue;
        }
      }
      inside ? one_row<T, kArgmax, kS, kStride, true>(problem, plane, block, taps, p, q, count)
             : one_row<T, kArgmax, kS, kStride, false>(problem, plane, block, taps, p, q, count);
    }
    p += rows;
  }
}

template <class T, bool kArgmax, int kS, int kStride>
void nchw_rows(const Pool2dProblem& problem, const T* x, const Output<T>& y, int64_t row, int64_t end) {
  const int64_t p_extent = problem.p(), q_extent = problem.q(), plane = problem.h * problem.w;
  while (row < end) {
    const int64_t nc = row / p_extent, p = row % p_extent;
    const int64_t p_end = end - row < p_extent - p ? p + end - row : p_extent;
    plane_rows<T, kArgmax, kS, kStride>(problem, x + nc * plane, y.at(nc * p_extent * q_extent), p, p_end,
                                        q_extent);
    row += p_end - p;
  }
}

// Chooses the instance: the windows of the well-known networks by name, every other one by its stride.
template <class T, bool kArgmax>
RunRows<T> fprop_nchw(const Pool2dProblem& problem) {
  const bool stride2 = problem.stride_w == 2 && problem.dilation_w == 1;
  if (stride2 && problem.s == 2) return nchw_rows<T, kArgmax, 2, 2>;
  if (stride2 && problem.s == 3) return nchw_rows<T, kArgmax, 3, 2>;
  if (stride2) return nchw_rows<T, kArgmax, 0, 2>;
  if (problem.stride_w == 1 && problem.s == 3) return nchw_rows<T, kArgmax, 3, 1>;
  if (problem.stride_w == 1) return nchw_rows<T, kArgmax, 0, 1>;
  return nchw_rows<T, kArgmax, 0, 0>;
}

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
