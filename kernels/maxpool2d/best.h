// The running maximum of a window and, for the argmax, its place: Best<T, false> carries values only.
//
// Everything here keeps torch's row-major rule (see beats() in lanes.h) as long as elements are taken in
// row-major order, and so are whole rows: a maximum over row r, then over rows, is the same maximum.
#pragma once
#include "lanes.h"

namespace pyconv {
namespace PYCONV_ISA {

template <class T, bool kArgmax>
struct Best {
  Vec<T> value;
  Places<T> place;  // unused, and so gone after optimisation, without kArgmax

  void take(const Vec<T>& later, const Places<T>& later_place) {
    if constexpr (kArgmax) {
      const Lanes<T> hit = beats<T>(later, value);
      value = choose<T>(hit, later, value);
      place = choose_places<T>(hit, later_place, place);
    } else {
      value = larger<T>(value, later);
    }
  }
};

// Where the results of one block of windows go.
template <class T>
struct Output {
  T* y;
  int32_t* argmax;  // null without kArgmax

  Output at(int64_t offset) const { return {y + offset, argmax ? argmax + offset : nullptr}; }

  template <bool kArgmax>
  void put(const Best<T, kArgmax>& best, int count) const {
    count == kLanes<T> ? store(y, best.value) : store_partial(y, best.value, count);
    if constexpr (kArgmax) store_places<T>(argmax, best.place, count);
  }
  // Windows that cover no element of x.
  void put_nothing(int64_t count) const {
    for (int64_t i = 0; i < count; ++i) y[i] = kLowest<T>;
    if (argmax)
      for (int64_t i = 0; i < count; ++i) argmax[i] = -1;
  }
};

// The taps [begin, end) of a window whose first one lies at `start` that fall into [0, extent).
struct Taps {
  int64_t begin, end;
};
inline Taps taps_inside(int64_t start, int64_t size, int64_t dilation, int64_t extent) {
  if (start >= 0 && start + (size - 1) * dilation < extent) return {0, size};
  const int64_t begin = start >= 0 ? 0 : (-start + dilation - 1) / dilation;
  const int64_t room = start >= extent ? 0 : (extent - start + dilation - 1) / dilation;
  return {begin, room < size ? room : size};
}

// Work is cut into units of about this many elements read and written (128 KiB of float): some 8 us of memory
// traffic, below which a second thread costs more than it brings. Of 16-bit elements it is as many bytes.
template <class T>
constexpr int64_t kUnitElements = (sizeof(T) == 2 ? 64 : 32) * 1024;

}  // namespace PYCONV_ISA
}  // namespace pyconv
