// Max-pooling backward, nchw: dx[n,c,h,w] = sum of dy[n,c,p,q] over the windows with argmax[n,c,p,q] = h*W + w.
//
// collect: a vector of dx, neighbours along w, looks at the windows that cover it (own.h). At stride 1 those are
// neighbours along q for each tap s; at stride 2 the same holds for the even and for the odd elements of the row,
// which are summed apart and woven together in the store.
// scatter: dy one by one, for every other window and for an argmax that strays from its window.
// One owner per (n, c) plane.
#pragma once
#include "own.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

template <class T>
void scatter_plane(const T* dy, const int32_t* argmax, int64_t count, T* dx, int64_t plane) {
  for (int64_t i = 0; i < plane; ++i) dx[i] = T(0);
  for (int64_t i = 0; i < count; ++i)
    if (uint32_t(argmax[i]) < uint32_t(plane)) dx[argmax[i]] += dy[i];
}

template <class T>
struct PlaneRow {  // the windows of one row p, or of a plane from p = 0 on
  const T* dy;
  const int32_t* argmax;
  int64_t count;  // Q
};

// Rows of dx that one strip covers before the next strip starts: amortises the strip's set-up, and the dy and
// argmax rows behind them stay in L1.
constexpr int64_t kStripRows = 8;

// kLanes elements of a row of dx, kStride apart, starting at column w: which windows' taps lie on them.
template <class T, int kS, int kStride, bool kInside>
struct Strip {
  static constexpr int kMaxTaps = (kS + kStride - 1) / kStride;
  int64_t s_last;                                 // the last tap that falls on lane 0 if its window exists
  int64_t q, step;                                // the window of s_last; each earlier tap's lies `step` further
  Lanes<T> windows[kMaxTaps > 0 ? kMaxTaps : 1];  // lanes of each tap whose window exists
  Lanes<T> inside_row;                            // lanes that are elements of the row
  Places<T> columns;

  Lanes<T> windows_at(int64_t from, int64_t q_extent) const {
    return inside_row & lanes_between<T>(-from, q_extent - from);
  }

  Strip(const Pool2dProblem& problem, int64_t w, int64_t present, int64_t q_extent) {
    const int64_t taps = kS ? kS : problem.s, at = w + problem.pad_left;
    step = kStride == 2 ? 1 : problem.dilation_w;
    s_last = kStride == 2 ? taps - 1 - (at + taps - 1) % 2 : taps - 1;
    q = kStride == 2 ? (at - s_last) / 2 : at - s_last * step;
    columns = lane_numbers<T>() * Place<T>(kStride) + Place<T>(w);
    if constexpr (!kInside) {
      inside_row = lanes_between<T>(0, present);
      if constexpr (kS > 0)
        for (int i = 0; i < kMaxTaps; ++i) windows[i] = windows_at(q + i * step, q_extent);
    }
  }

  // One row of windows, taps from s_last down to 0: ascending q.
  void collect(Owned<T>& owned, const PlaneRow<T>& row, const Places<T>& place) const {
    int i = 0;
    int64_t from = q;
    for (int64_t s = s_last; s >= 0; s -= kStride, from += step, ++i) {
      if constexpr (kInside) {
        owned.collect(load_places<T>(row.argmax + from, kLanes<T>), place, load(row.dy + from));
      } else {
        const Lanes<T> lanes = kS ? windows[i] : windows_at(from, row.count);
        owned.collect(load_places_lanes<T>(row.argmax + from, lanes), place,
                      load_lanes<T>(row.dy + from, lanes, T(0)));
      }
    }
  }
};

template <class T, int kStride>
inline void store_strip(T* dx, const Owned<T>* owned, int count) {
  if constexpr (kStride == 1) {
    count == kLanes<T> ? store(dx, owned[0].sum) : store_partial(dx, owned[0].sum, count);
  } else {
    const Vec<T> low = zip_low<T>(owned[0].sum, owned[1].sum), high = zip_high<T>(owned[0].sum, owned[1].sum);
    count >= kLanes<T> ? store(dx, low) : store_partial(dx, low, count);
    if (count == 2 * kLanes<T>) {
      store(dx + kLanes<T>, high);
    } else if (count > kLanes<T>) {
      store_partial(dx + kLanes<T>, high, count - kLanes<T>);
    }
  }
}

// Columns [w, w + count) of the rows [h_begin, h_end) of a plane.
template <class T, int kS, int kStride, bool kInside>
void collect_strip(const Pool2dProblem& problem, const PlaneRow<T>& windows, int64_t p_extent, int64_t h_begin,
                   int64_t h_end, int64_t w, int count, T* dx, Places<T>& hits) {
  const Strip<T, kS, kStride, kInside> strips[2] = {
      {problem, w, (count + kStride - 1) / kStride, windows.count},  // even elements
      {problem, w + 1, count / kStride, windows.count}};             // odd ones, unused at stride 1
  for (int64_t h = h_begin; h < h_end; ++h) {
    const Covering rows = covering(h, problem.pad_top, problem.r, problem.stride_h, problem.dilation_h, p_extent);
    const Places<T> row_place = broadcast_place<T>(h * problem.w);
    Owned<T> owned[kStride];
    for (int64_t p = rows.begin; p < rows.end; ++p) {
      if (problem.dilation_h > 1 && (h + problem.pad_top - p * problem.stride_h) % problem.dilation_h) continue;
      const PlaneRow<T> row{windows.dy + p * windows.count, windows.argmax + p * windows.count, windows.count};
      for (int phase = 0; phase < kStride; ++phase)
        strips[phase].collect(owned[phase], row, strips[phase].columns + row_place);
    }
    for (int phase = 0; phase < kStride; ++phase) hits += owned[phase].hits;
    store_strip<T, kStride>(dx + h * problem.w + w, owned, count);
  }
}

// The whole plane; returns the number of dy it has placed.
template <class T, int kS, int kStride>
int64_t collect_plane(const Pool2dProblem& problem, const PlaneRow<T>& windows, int64_t p_extent, T* dx) {
  constexpr int kBlock = kLanes<T> * kStride;
  const int64_t reach = (problem.s - 1) * (kStride == 2 ? 1 : problem.dilation_w);
  Places<T> hits = {};
  for (int64_t h = 0; h < problem.h; h += kStripRows) {
    const int64_t h_end = h + kStripRows < problem.h ? h + kStripRows : problem.h;
    for (int64_t w = 0; w < problem.w; w += kBlock) {
      const int count = int(problem.w - w < kBlock ? problem.w - w : kBlock);
      // Inside: the block is full, and every window that any of its taps asks for exists.
      const int64_t at = w + problem.pad_left;
      const bool inside =
          count == kBlock && at + kStride - 1 >= reach && (at + kBlock - 1) / kStride < windows.count;
      inside ? collect_strip<T, kS, kStride, true>(problem, windows, p_extent, h, h_end, w, count, dx, hits)
             : collect_strip<T, kS, kStride, false>(problem, windows, p_extent, h, h_end, w, count, dx, hits);
    }
  }
  return total_hits<T>(hits);
}

// dx of one plane.
template <class T, int kS, int kStride>  // kStride 0: scatter
void nchw_plane(const Pool2dProblem& problem, const T* dy, const int32_t* argmax, T* dx) {
  const int64_t p_extent = problem.p(), q_extent = problem.q(), windows = p_extent * q_extent;
  const int64_t plane = problem.h * problem.w;
  if constexpr (kStride > 0) {
    const PlaneRow<T> rows{dy, argmax, q_extent};
    const int64_t placed = collect_plane<T, kS, kStride>(problem, rows, p_extent, dx);
    if (placed == places_inside(argmax, windows, plane)) return;
  }
  scatter_plane(dy, argmax, windows, dx, plane);
}

template <class T>
using RunPlane = void (*)(const Pool2dProblem&, const T* dy, const int32_t* argmax, T* dx);

template <class T>
RunPlane<T> dgrad_nchw_plane(const Pool2dProblem& problem) {
  if (problem.r * problem.s <= kCollectTaps) {
    const bool stride2 = problem.stride_w == 2 && problem.dilation_w == 1;
    if (stride2 && problem.s == 2) return nchw_plane<T, 2, 2>;
    if (stride2 && problem.s == 3) return nchw_plane<T, 3, 2>;
    if (stride2) return nchw_plane<T, 0, 2>;
    if (problem.stride_w == 1 && problem.s == 3) return nchw_plane<T, 3, 1>;
    if (problem.stride_w == 1) return nchw_plane<T, 0, 1>;
  }
  return nchw_plane<T, 0, 0>;
}

template <class T>
int64_t planes_per_unit(const Pool2dProblem& problem) {
  const int64_t size = problem.h * problem.w + 2 * problem.p() * problem.q();
  return size < kUnitElements<T> ? kUnitElements<T> / size : 1;
}

template <class T>
int64_t dgrad_nchw_workspace(const Pool2dProblem& problem, int threads) {
  if (sizeof(T) != 2) return 0;
  const int64_t unit = planes_per_unit<T>(problem);
  return threads *
         (scratch_bytes<T>(unit * problem.p() * problem.q()) + scratch_bytes<T>(unit * problem.h * problem.w));
}

template <class T>
void dgrad_nchw(const Pool2dProblem& problem, const T* dy, const int32_t* argmax, T* dx, char* workspace) {
  using Wide = Accumulator<T>;
  const RunPlane<Wide> run = dgrad_nchw_plane<Wide>(problem);
  const int64_t windows = problem.p() * problem.q(), plane = problem.h * problem.w;
  const int64_t planes = problem.n * problem.c, unit = planes_per_unit<T>(problem);
  parallel_for((planes + unit - 1) / unit, [&](int64_t index, int thread) {
    const int64_t first = index * unit, count = first + unit < planes ? unit : planes - first;
    dgrad_in_float(dy + first * windows, count * windows, dx + first * plane, count * plane,
                   workspace + thread * (scratch_bytes<T>(unit * windows) + scratch_bytes<T>(unit * plane)),
                   [&](const Wide* from, Wide* to) {
                     for (int64_t i = 0; i < count; ++i)
                       run(problem, from + i * windows, argmax + (first + i) * windows, to + i * plane);
                   });
  });
}

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
