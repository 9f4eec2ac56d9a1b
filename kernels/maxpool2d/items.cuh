// Which part of a result each CUDA thread computes, in both layouts by one index code.
//
// Either layout is [image][h][w][inner] in memory: nchw has n*c images of one inner element, nhwc n images of c
// inner elements. A thread's *item* is a few rows of one column of the result, for `kElements` inner elements side
// by side. Items are numbered with the inner elements fastest, so that the threads of a warp touch neighbours:
//
//   item = ((image * groups + group) * columns + column) * vectors + vector
//
// One launch has fewer than 2^31 items, so the numbers are taken apart in 32 bits; what they add up to is an offset of
// 64 bits. A result with more items takes several launches, each told where it begins (items.py).
#pragma once
#include "common/cuda.h"

namespace pyconv {

// Blocks that a multiprocessor must be able to hold. 1024 threads of 64 registers each keep enough bytes in flight for an
// H100 (README.md); devices before it have less bandwidth to fill, and need more registers where they have no
// comparison of bfloat16 pairs.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kResidentThreads = 768;
#else
constexpr int kResidentThreads = 1024;
#endif
template <int kThreads>
constexpr int kBlocks = kResidentThreads / kThreads;

// Division by a number that the host knows, as a multiplication (Granlund and Montgomery, Division by Invariant
// Integers using Multiplication, 1994). Holds for numerators below 2^31. items.py makes the multiplier.
struct Divider {
  uint32_t divisor, multiplier, shift;
};
PYCONV_DEVICE uint32_t quotient(uint32_t numerator, const Divider& by) {
  return (uint32_t(uint64_t(numerator) * by.multiplier >> 32) + numerator) >> by.shift;
}

// The items of one launch.
struct Items {
  Divider vectors, columns, groups;
  Divider taps;          // by s: a tap r*s_extent + s into r and s
  uint32_t count;        // of items in this launch
  uint32_t first_group;  // the launch begins with this group
  int64_t first_image;   // of this image
  int32_t p, q;          // windows along each axis
};

struct Position {
  int64_t image;
  int group, column, vector;
};
template <int kThreads>
PYCONV_DEVICE uint32_t item_of_thread() {
  return blockIdx.x * kThreads + threadIdx.x;
}
PYCONV_DEVICE Position position(const Items& items, uint32_t item) {
  const uint32_t pixel = quotient(item, items.vectors), row = quotient(pixel, items.columns);
  const uint32_t group = row + items.first_group, image = quotient(group, items.groups);
  return {items.first_image + image, int(group - image * items.groups.divisor),
          int(pixel - row * items.columns.divisor), int(item - pixel * items.vectors.divisor)};
}

// Inner elements of a pixel. A constant in nchw, so that neighbouring columns are an immediate offset.
template <int kLayout>
PYCONV_DEVICE int inner_extent(const Pool2dProblem& problem) {
  return kLayout == kNchw ? 1 : int(problem.c);
}

// Where element (h, w) of an image is, for an image of extents h_extent x w_extent.
PYCONV_DEVICE int64_t offset_of(int64_t image, int h, int w, int h_extent, int w_extent, int inner) {
  return ((image * h_extent + h) * w_extent + w) * inner;
}

PYCONV_DEVICE bool is_inside(int at, int extent) { return uint32_t(at) < uint32_t(extent); }

// The taps [begin, end) of a window along one axis that lie inside [0, extent), for a first tap at `start`. None do if
// begin >= end; begin is at most `size`.
struct Taps {
  int begin, end;
};
PYCONV_DEVICE Taps taps_inside(int start, int size, int dilation, int extent) {
  if (start >= 0 && start + (size - 1) * dilation < extent) return {0, size};
  const int begin = start >= 0 ? 0 : (dilation - 1 - start) / dilation;
  const int room = start >= extent ? 0 : (extent - start + dilation - 1) / dilation;
  return {begin < size ? begin : size, room < size ? room : size};
}

}  // namespace pyconv
