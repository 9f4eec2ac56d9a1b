// Max-pooling forward, nhwc:
//   y[n,p,q,c] = max over r, s of x[n,h,w,c]      h = p*stride_h - pad_top + r*dilation_h, w alike
//   argmax[n,p,q,c] = h*W + w of that element
//
// A vector holds kLanes channels of one pixel, so every tap is one load, a place is the same for all lanes, and
// any stride, dilation and padding costs the same.
#pragma once
#include "units.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

// Vectors of channels taken together: one 256-byte run of each tap with AVX-512.
constexpr int kChannelVectors = 4;

// The window's taps inside the image: [rows.begin, rows.end) x [columns.begin, columns.end), with tap (0, 0) at
// (h, w). Not empty.
struct Window {
  Taps rows, columns;
  int64_t h, w;
};

template <class T, bool kArgmax, int kVectors, bool kPartial>
void channels(const Pool2dProblem& problem, const T* image, const Output<T>& to, const Window& window, int count) {
  const int64_t first = (window.h + window.rows.begin * problem.dilation_h) * problem.w + window.w +
                        window.columns.begin * problem.dilation_w;
  Best<T, kArgmax> best[kVectors];
  for (int i = 0; i < kVectors; ++i) best[i] = {broadcast<T>(kLowest<T>), broadcast_place<T>(first)};
  for (int64_t r = window.rows.begin; r < window.rows.end; ++r) {
    const int64_t row = (window.h + r * problem.dilation_h) * problem.w + window.w;
    for (int64_t s = window.columns.begin; s < window.columns.end; ++s) {
      const int64_t place = row + s * problem.dilation_w;
      const T* from = image + place * problem.c;
      const Places<T> places = kArgmax ? broadcast_place<T>(place) : Places<T>{};
      for (int i = 0; i < kVectors; ++i) {
        const Vec<T> value = kPartial ? load_partial(from, count) : load(from + i * kLanes<T>);
        best[i].take(value, places);
      }
    }
  }
  for (int i = 0; i < kVectors; ++i) to.at(i * kLanes<T>).put(best[i], kPartial ? count : kLanes<T>);
}

template <class T, bool kArgmax>
void pixel(const Pool2dProblem& problem, const T* image, const Output<T>& to, const Window& window) {
  constexpr int64_t kBlock = kChannelVectors * kLanes<T>;
  int64_t c = 0;
  for (; c + kBlock <= problem.c; c += kBlock)
    channels<T, kArgmax, kChannelVectors, false>(problem, image + c, to.at(c), window, kLanes<T>);
  for (; c + kLanes<T> <= problem.c; c += kLanes<T>)
    channels<T, kArgmax, 1, false>(problem, image + c, to.at(c), window, kLanes<T>);
  if (c < problem.c) channels<T, kArgmax, 1, true>(problem, image + c, to.at(c), window, int(problem.c - c));
}

template <class T, bool kArgmax>
void nhwc_rows(const Pool2dProblem& problem, const T* x, const Output<T>& y, int64_t row, int64_t end) {
  const int64_t p_extent = problem.p(), q_extent = problem.q(), image = problem.h * problem.w * problem.c;
  for (; row < end; ++row) {
    Window window;
    window.h = row % p_extent * problem.stride_h - problem.pad_top;
    window.rows = taps_inside(window.h, problem.r, problem.dilation_h, problem.h);
    for (int64_t q = 0; q < q_extent; ++q) {
      window.w = q * problem.stride_w - problem.pad_left;
      window.columns = taps_inside(window.w, problem.s, problem.dilation_w, problem.w);
      const Output<T> to = y.at((row * q_extent + q) * problem.c);
      if (window.rows.begin < window.rows.end && window.columns.begin < window.columns.end) {
        pixel<T, kArgmax>(problem, x + row / p_extent * image, to, window);
      } else {
        to.put_nothing(problem.c);
      }
    }
  }
}

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
