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

// The argmax of the window whose first tap is at (h, w), its winner being `tap`, or kNoTap if it covers nothing.
template <class Place, int kNoTap>
PYCONV_DEVICE Place place_of(const Pool2dProblem& problem, const Items& items, int h, int w, int tap) {
  if constexpr (sizeof(Place) == 1) return Place(tap);  // the low bits of kNoTap are ones
  const int r = int(quotient(uint32_t(tap), items.taps)), s = tap - r * int(problem.s);
  h += r * int(problem.dilation_h), w += s * int(problem.dilation_w);
  return tap == kNoTap ? Place(-1) : Place(h * int(problem.w) + w);
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
