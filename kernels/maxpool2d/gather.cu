// Max-pooling's linear map with the argmax held fixed: y[n,c,p,q] = x[n,c,argmax[n,c,p,q]].
//
// It is the tangent of max-pooling and the derivative of its backward. A window that covers nothing reads as 0; so does
// an argmax outside the plane, since a caller may pass its own. A thread computes kOutputs results of one column, p to
// p + kOutputs - 1: the reads of x hang on those of the argmax, so several of each should be in flight.
#include "common/numbers.h"
#include "maxpool2d/places.cuh"

namespace pyconv {

// The place h*w_extent + w that the argmax of window (p, q) names; -1 if none in the image.
PYCONV_DEVICE int64_t place_named(const Pool2dProblem& problem, const Items&, int, int, int32_t place) {
  return place >= 0 && place < problem.h * problem.w ? place : -1;
}
PYCONV_DEVICE int64_t place_named(const Pool2dProblem& problem, const Items& items, int p, int q, uint8_t tap) {
  const int r = int(quotient(tap, items.taps)), s = tap - r * int(problem.s);
  const int h = p * int(problem.stride_h) - int(problem.pad_top) + r * int(problem.dilation_h);
  const int w = q * int(problem.stride_w) - int(problem.pad_left) + s * int(problem.dilation_w);
  const bool inside = tap != 255 && is_inside(h, int(problem.h)) && is_inside(w, int(problem.w));
  return inside ? int64_t(h) * problem.w + w : -1;
}

template <class T, int kLayout, int kThreads, int kOutputs, class Place>
__global__ void __launch_bounds__(kThreads, kBlocks<kThreads>)
    gather(const T* __restrict__ x, const Place* __restrict__ argmax, T* __restrict__ y, Pool2dProblem problem,
           Items items) {
  const uint32_t item = item_of_thread<kThreads>();
  if (item >= items.count) return;
  const int inner = inner_extent<kLayout>(problem);
  const Position at = position(items, item);
  const int p = at.group * kOutputs, q = at.column, channel = at.vector;
  const int64_t to = offset_of(at.image, p, q, items.p, items.q, inner) + channel;
  const int64_t row_stride = int64_t(items.q) * inner;
  const T* plane = x + at.image * problem.h * problem.w * inner + channel;
  PYCONV_UNROLL
  for (int i = 0; i < kOutputs; ++i) {
    if (p + i >= items.p) break;
    const int64_t place = place_named(problem, items, p + i, q, argmax[to + i * row_stride]);
    y[to + i * row_stride] = place < 0 ? T{} : plane[place * inner];
  }
}

}  // namespace pyconv
