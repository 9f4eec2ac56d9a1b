// Packing for the direct weight gradient: both operands become [pixel][channel] panels, whatever their layout.
//
//   nhwc: a panel is a copy of a slice of each pixel's channels.
//   nchw: a panel is a transpose, kLanes x kLanes elements at a time in registers.
//
// Only elements inside the image are packed: the tile's ranges never reach padding, so no zero is ever multiplied.
// Elements E of 16 bits are widened on the way: panels hold T, a float.
#pragma once
#include "common/transpose.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

// from[0], from[step], ..., `count` of them (1..kLanes); the other lanes are zero.
template <class E, class T = Accumulator<E>>
inline Vec<T> load_strided(const E* from, int64_t step, int count) {
  if (step == 1) return count == kLanes<T> ? load(from) : load_partial(from, count);
  if (step == 2) {
    const int last = 2 * count - 1;  // elements from the first to the last wanted, inclusive
    const int low = last < kLanes<T> ? last : kLanes<T>, high = last - low;
    const Vec<T> a = low == kLanes<T> ? load(from) : load_partial(from, low);
    return even_lanes<T>(a, load_partial(from + low, high), LaneList<T>{});
  }
  T lanes[kLanes<T>] = {};
  for (int lane = 0; lane < count; ++lane) lanes[lane] = widen(from[lane * step]);
  return load(lanes);
}

// to[pixel*to_stride + channel] = from[channel*channel_stride + pixel*step] for kLanes channels, the last of which
// beyond `channels` become zero.
template <class T, class E>
[[gnu::noinline]] void pack_transposed(const E* from, int64_t channel_stride, int64_t step, int64_t channels,
                                       int64_t pixels, T* to, int64_t to_stride) {
  for (int64_t pixel = 0; pixel < pixels; pixel += kLanes<T>) {
    const int count = int(pixels - pixel < kLanes<T> ? pixels - pixel : kLanes<T>);
    Vec<T> rows[kLanes<T>];
    if (channels >= kLanes<T> && count == kLanes<T> && step == 1) {
      for (int i = 0; i < kLanes<T>; ++i) rows[i] = load(from + i * channel_stride + pixel);
    } else {
      for (int i = 0; i < kLanes<T>; ++i)
        rows[i] = i < channels ? load_strided(from + i * channel_stride + pixel * step, step, count) : Vec<T>{};
    }
    transpose<T>(rows);
    T* row = to + pixel * to_stride;
    if (count == kLanes<T>) {
      for (int i = 0; i < kLanes<T>; ++i) store<T>(row + i * to_stride, rows[i]);
    } else {
      for (int i = 0; i < count; ++i) store<T>(row + i * to_stride, rows[i]);
    }
  }
}

// to[0..width) = from[0..channels), then zeros; width is a multiple of kLanes. `readable` >= channels elements may
// be read, so that a whole vector can be loaded where it exists (its surplus lanes are other channels, never
// used).
template <class T, class E>
inline void pack_pixel(const E* from, int64_t channels, int64_t readable, T* to, int64_t width) {
  for (int64_t i = 0; i < width; i += kLanes<T>) {
    if (i + kLanes<T> <= readable)
      store<T>(to + i, load(from + i));
    else
      store<T>(to + i, channels > i
                           ? load_partial(from + i, int(channels - i < kLanes<T> ? channels - i : kLanes<T>))
                           : Vec<T>{});
  }
}

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
