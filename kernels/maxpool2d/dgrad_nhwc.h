// Max-pooling backward, nhwc: dx[n,h,w,c] = sum of dy[n,p,q,c] over the windows with argmax[n,p,q,c] = h*W + w.
//
// collect: a vector of dx, kLanes channels of one pixel, looks at the windows that cover the pixel (own.h); one
// owner per range of rows h. scatter: dy one by one, for large windows and for images with a stray argmax; one
// owner per image and block of channels.
#pragma once
#include "own.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

// Channels of one scatter owner: one cache line, so that no two owners share one.
template <class T>
constexpr int64_t kScatterChannels = 64 / sizeof(T);

// Rows of dx that one unit collects; units of one image are neighbours.
template <class T>
int64_t unit_rows(const Pool2dProblem& problem) {
  const int64_t row = problem.w * problem.c;
  return row < kUnitElements<T> ? kUnitElements<T> / row : 1;
}
template <class T>
int64_t units_per_image(const Pool2dProblem& problem) {
  return (problem.h + unit_rows<T>(problem) - 1) / unit_rows<T>(problem);
}

// sums[pixel*pitch + i] += dy at the place that argmax names, for some channels i.
template <class T>
void scatter_channels(const Pool2dProblem& problem, const T* dy, const int32_t* argmax, Accumulator<T>* sums,
                      int64_t pitch, int64_t channels) {
  const int64_t plane = problem.h * problem.w, windows = problem.p() * problem.q();
  for (int64_t pixel = 0; pixel < plane; ++pixel)
    for (int64_t i = 0; i < channels; ++i) sums[pixel * pitch + i] = 0;
  for (int64_t window = 0; window < windows; ++window)
    for (int64_t i = 0; i < channels; ++i) {
      const int32_t place = argmax[window * problem.c + i];
      if (uint32_t(place) < uint32_t(plane)) sums[place * pitch + i] += widen(dy[window * problem.c + i]);
    }
}

// The rows p of windows that the rows [h, h_end) of dx may be covered by.
inline Covering rows_covering(const Pool2dProblem& problem, int64_t h, int64_t h_end, int64_t p_extent) {
  const auto at = [&](int64_t row) {
    return covering(row, problem.pad_top, problem.r, problem.stride_h, problem.dilation_h, p_extent);
  };
  const int64_t begin = at(h).begin, end = at(h_end - 1).end;
  return {begin, begin < end ? end : begin};
}

struct Pixel {
  Covering rows, columns;
  int64_t h, w;
};

template <class T, int kVectors, bool kPartial>
void collect_channels(const Pool2dProblem& problem, const T* dy, const int32_t* argmax, T* dx, const Pixel& pixel,
                      int64_t q_extent, int count, Places<T>& hits) {
  const Places<T> place = broadcast_place<T>(pixel.h * problem.w + pixel.w);
  Owned<T> owned[kVectors];
  for (int64_t p = pixel.rows.begin; p < pixel.rows.end; ++p) {
    if (problem.dilation_h > 1 && (pixel.h + problem.pad_top - p * problem.stride_h) % problem.dilation_h)
      continue;
    for (int64_t q = pixel.columns.begin; q < pixel.columns.end; ++q) {
      if (problem.dilation_w > 1 && (pixel.w + problem.pad_left - q * problem.stride_w) % problem.dilation_w)
        continue;
      const int64_t from = (p * q_extent + q) * problem.c;
      for (int i = 0; i < kVectors; ++i)
        owned[i].collect(load_places<T>(argmax + from + i * kLanes<T>, count), place,
                         kPartial ? load_partial(dy + from, count) : load(dy + from + i * kLanes<T>));
    }
  }
  for (int i = 0; i < kVectors; ++i) {
    kPartial ? store_partial(dx, owned[i].sum, count) : store(dx + i * kLanes<T>, owned[i].sum);
    hits += owned[i].hits;
  }
}

template <class T>
int64_t collect_row(const Pool2dProblem& problem, const T* dy, const int32_t* argmax, T* dx, int64_t h,
                    int64_t p_extent, int64_t q_extent) {
  constexpr int kVectors = 4;  // 256-byte runs of dy with AVX-512
  Places<T> hits = {};
  Pixel pixel;
  pixel.h = h;
  pixel.rows = covering(h, problem.pad_top, problem.r, problem.stride_h, problem.dilation_h, p_extent);
  for (int64_t w = 0; w < problem.w; ++w) {
    pixel.w = w;
    pixel.columns = covering(w, problem.pad_left, problem.s, problem.stride_w, problem.dilation_w, q_extent);
    T* to = dx + w * problem.c;
    int64_t c = 0;
    for (; c + kVectors * kLanes<T> <= problem.c; c += kVectors * kLanes<T>)
      collect_channels<T, kVectors, false>(problem, dy + c, argmax + c, to + c, pixel, q_extent, kLanes<T>, hits);
    for (; c + kLanes<T> <= problem.c; c += kLanes<T>)
      collect_channels<T, 1, false>(problem, dy + c, argmax + c, to + c, pixel, q_extent, kLanes<T>, hits);
    if (c < problem.c)
      collect_channels<T, 1, true>(problem, dy + c, argmax + c, to + c, pixel, q_extent, int(problem.c - c), hits);
  }
  return total_hits<T>(hits);
}

// The workspace: missing[n][unit] of dgrad_nhwc, then, of 16-bit elements, each thread's scratch: what collect reads
// and writes, or the sums of one owner's scatter.
template <class T>
struct NhwcScratch {
  int64_t missing, thread;  // bytes

  explicit NhwcScratch(const Pool2dProblem& problem) {
    missing = (problem.n * units_per_image<T>(problem) * int64_t(sizeof(int64_t)) + kLineBytes - 1) / kLineBytes *
              kLineBytes;
    const int64_t rows = unit_rows<T>(problem), reach = rows + (problem.r - 1) * problem.dilation_h;
    const int64_t p_rows = RowUnits::smaller(problem.p(), reach / problem.stride_h + 1);
    const int64_t collects =
        scratch_bytes<T>(p_rows * problem.q() * problem.c) + scratch_bytes<T>(rows * problem.w * problem.c);
    const int64_t scatters = scratch_bytes<T>(problem.h * problem.w * kScatterChannels<Accumulator<T>>);
    thread = sizeof(T) != 2 ? 0 : collects > scatters ? collects : scatters;
  }
};

template <class T>
void dgrad_nhwc(const Pool2dProblem& problem, const T* dy, const int32_t* argmax, T* dx, char* workspace) {
  using Wide = Accumulator<T>;
  const int64_t p_extent = problem.p(), q_extent = problem.q(), plane = problem.h * problem.w;
  const int64_t x_row = problem.w * problem.c, x_image = plane * problem.c;
  const int64_t y_row = q_extent * problem.c, y_image = p_extent * y_row;
  const int64_t rows = unit_rows<T>(problem), units = units_per_image<T>(problem);
  const bool collects = problem.r * problem.s <= kCollectTaps;
  const NhwcScratch<T> sizes(problem);
  // missing[n][unit]: places inside the plane in the unit's share of argmax, less the dy the unit has placed.
  // Over an image they sum to the number of strays.
  int64_t* missing = reinterpret_cast<int64_t*>(workspace);
  if (collects)
    parallel_for(problem.n * units, [&](int64_t index, int thread) {
      const int64_t n = index / units, unit = index % units;
      const int64_t p_begin = p_extent * unit / units, p_end = p_extent * (unit + 1) / units;
      const int32_t* places = argmax + n * y_image;
      int64_t balance = places_inside(places + p_begin * y_row, (p_end - p_begin) * y_row, plane);
      const int64_t h_begin = unit * rows, h_end = RowUnits::smaller(problem.h, h_begin + rows);
      const Covering windows = rows_covering(problem, h_begin, h_end, p_extent);
      const int64_t y_begin = windows.begin * y_row, y_size = (windows.end - windows.begin) * y_row;
      dgrad_in_float(
          dy + n * y_image + y_begin, y_size, dx + n * x_image + h_begin * x_row, (h_end - h_begin) * x_row,
          workspace + sizes.missing + thread * sizes.thread, [&](const Wide* from, Wide* to) {
            for (int64_t h = h_begin; h < h_end; ++h)
              balance -=
                  collect_row(problem, from - y_begin, places, to + (h - h_begin) * x_row, h, p_extent, q_extent);
          });
      missing[index] = balance;
    });
  bool any = !collects;
  for (int64_t n = 0; collects && n < problem.n; ++n) {
    int64_t strays = 0;
    for (int64_t unit = 0; unit < units; ++unit) strays += missing[n * units + unit];
    missing[n * units] = strays;
    any |= strays != 0;
  }
  if (!any) return;
  constexpr int64_t kChannels = kScatterChannels<Wide>;
  const int64_t blocks = (problem.c + kChannels - 1) / kChannels;
  parallel_for(problem.n * blocks, [&](int64_t index, int thread) {
    const int64_t n = index / blocks, c = index % blocks * kChannels;
    if (collects && missing[n * units] == 0) return;
    const int64_t channels = RowUnits::smaller(problem.c - c, kChannels);
    const T* from = dy + n * y_image + c;
    const int32_t* places = argmax + n * y_image + c;
    T* to = dx + n * x_image + c;
    if constexpr (sizeof(T) != 2) {
      scatter_channels(problem, from, places, to, problem.c, channels);
    } else {
      Wide* sums = reinterpret_cast<Wide*>(workspace + sizes.missing + thread * sizes.thread);
      scatter_channels(problem, from, places, sums, kChannels, channels);
      for (int64_t pixel = 0; pixel < plane; ++pixel)
        narrow_run(sums + pixel * kChannels, channels, to + pixel * problem.c);
    }
  });
}

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
