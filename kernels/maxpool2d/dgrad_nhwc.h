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
inline int64_t unit_rows(const Pool2dProblem& problem) {
  const int64_t row = problem.w * problem.c;
  return row < kUnitElements ? kUnitElements / row : 1;
}
inline int64_t units_per_image(const Pool2dProblem& problem) {
  return (problem.h + unit_rows(problem) - 1) / unit_rows(problem);
}

template <class T>
void scatter_channels(const Pool2dProblem& problem, const T* dy, const int32_t* argmax, T* dx, int64_t channels) {
  const int64_t plane = problem.h * problem.w, windows = problem.p() * problem.q();
  for (int64_t pixel = 0; pixel < plane; ++pixel)
    for (int64_t i = 0; i < channels; ++i) dx[pixel * problem.c + i] = T(0);
  for (int64_t window = 0; window < windows; ++window)
    for (int64_t i = 0; i < channels; ++i) {
      const int32_t place = argmax[window * problem.c + i];
      if (uint32_t(place) < uint32_t(plane)) dx[place * problem.c + i] += dy[window * problem.c + i];
    }
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

template <class T>
void dgrad_nhwc(const Pool2dProblem& problem, const T* dy, const int32_t* argmax, T* dx, int64_t* missing) {
  const int64_t p_extent = problem.p(), q_extent = problem.q(), plane = problem.h * problem.w;
  const int64_t x_image = plane * problem.c, y_row = q_extent * problem.c, y_image = p_extent * y_row;
  const int64_t rows = unit_rows(problem), units = units_per_image(problem);
  const bool collects = problem.r * problem.s <= kCollectTaps;
  // missing[n][unit]: places inside the plane in the unit's share of argmax, less the dy the unit has placed.
  // Over an image they sum to the number of strays.
  if (collects)
    parallel_for(problem.n * units, [&](int64_t index, int) {
      const int64_t n = index / units, unit = index % units;
      const int64_t p_begin = p_extent * unit / units, p_end = p_extent * (unit + 1) / units;
      const int32_t* places = argmax + n * y_image;
      int64_t balance = places_inside(places + p_begin * y_row, (p_end - p_begin) * y_row, plane);
      for (int64_t h = unit * rows; h < problem.h && h < (unit + 1) * rows; ++h)
        balance -= collect_row(problem, dy + n * y_image, places, dx + n * x_image + h * problem.w * problem.c, h,
                               p_extent, q_extent);
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
  const int64_t blocks = (problem.c + kScatterChannels<T> - 1) / kScatterChannels<T>;
  parallel_for(problem.n * blocks, [&](int64_t index, int) {
    const int64_t n = index / blocks, c = index % blocks * kScatterChannels<T>;
    if (collects && missing[n * units] == 0) return;
    const int64_t channels = problem.c - c < kScatterChannels<T> ? problem.c - c : kScatterChannels<T>;
    scatter_channels(problem, dy + n * y_image + c, argmax + n * y_image + c, dx + n * x_image + c, channels);
  });
}

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
