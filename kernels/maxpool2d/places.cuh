// What an argmax is made of, and how a tap becomes one.
//
//   int32_t  the place h*w_extent + w in the plane; -1 where a window covers nothing of the image
//   uint8_t  the tap r*s_extent + s in the window, of at most 255; 255 where a window covers nothing
//
// One byte where the window allows moves a quarter of the argmax' bytes, forward and backward.
#pragma once
#include "common/vector.h"
#include "maxpool2d/items.cuh"

namespace pyconv {

struct NoPlace {};  // values only

template <class Place>
constexpr bool kHasPlaces = true;
template <>
constexpr bool kHasPlaces<NoPlace> = false;

// The window of one result: its first tap lies at (h, w), and these of its taps are inside the image.
struct Window {
  int h, w;
  Taps rows, columns;
};
PYCONV_DEVICE bool covers_nothing(const Window& window) {
  return window.rows.begin >= window.rows.end || window.columns.begin >= window.columns.end;
}

PYCONV_DEVICE void place_into(int32_t& place, const Pool2dProblem& problem, const Items& items,
                              const Window& window, int tap) {
  const int r = int(quotient(uint32_t(tap), items.taps)), s = tap - r * int(problem.s);
  const int h = window.h + r * int(problem.dilation_h), w = window.w + s * int(problem.dilation_w);
  place = covers_nothing(window) ? -1 : h * int(problem.w) + w;
}
PYCONV_DEVICE void place_into(uint8_t& place, const Pool2dProblem&, const Items&, const Window& window, int tap) {
  place = covers_nothing(window) ? uint8_t(255) : uint8_t(tap);
}

// kCount of anything side by side, in memory instructions of at most 16 bytes. Aligned to kCount elements, or 16 bytes.
template <int kCount, class T>
PYCONV_DEVICE void load_all(const T* at, T (&values)[kCount]) {
  constexpr int kPart = kCount < kVector16<T> ? kCount : kVector16<T>;
  PYCONV_UNROLL
  for (int first = 0; first < kCount; first += kPart) {
    const Vector<T, kPart> part = load_vector<kPart>(at + first);
    PYCONV_UNROLL
    for (int i = 0; i < kPart; ++i) values[first + i] = part.element[i];
  }
}
template <int kCount, class T>
PYCONV_DEVICE void store_all(T* at, const T (&values)[kCount]) {
  constexpr int kPart = kCount < kVector16<T> ? kCount : kVector16<T>;
  PYCONV_UNROLL
  for (int first = 0; first < kCount; first += kPart) {
    Vector<T, kPart> part;
    PYCONV_UNROLL
    for (int i = 0; i < kPart; ++i) part.element[i] = values[first + i];
    store_vector(at + first, part);
  }
}

}  // namespace pyconv
