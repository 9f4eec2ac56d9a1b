// The pooling's linear map with the argmax held fixed: y[n,c,p,q] = x[n,c,argmax[n,c,p,q]].
//
// It is the tangent of max-pooling and the derivative of its backward. A place of -1 (a window that covers
// no element) reads as 0. Any other place is checked against the plane, since a caller may pass its own.
// Elements are copied and never looked at: integers of their size stand for them, and 0 has the bits of 0.
#include "best.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

template <class T>
void run(const Pool2dProblem& problem, const Pool2dArgs& args) {
  const T* x = static_cast<const T*>(args.a);
  T* y = static_cast<T*>(args.out);
  const int64_t x_plane = problem.h * problem.w, y_plane = problem.p() * problem.q();
  // nchw: rows are (n, c) planes of single values. nhwc: rows are images, the places of all channels side by side.
  const bool is_nhwc = problem.layout == kNhwc;
  const int64_t channels = is_nhwc ? problem.c : 1, pixels = is_nhwc ? problem.n * y_plane : problem.y_size();
  const int64_t unit = channels < kUnitElements<T> ? kUnitElements<T> / channels : 1;
  parallel_for((pixels + unit - 1) / unit, [&](int64_t index, int) {
    const int64_t end = (index + 1) * unit < pixels ? (index + 1) * unit : pixels;
    for (int64_t begin = index * unit; begin < end;) {
      const int64_t row = begin / y_plane, row_end = (row + 1) * y_plane < end ? (row + 1) * y_plane : end;
      const T* from = x + row * x_plane * channels;
      for (int64_t pixel = begin; pixel < row_end; ++pixel)
        for (int64_t channel = 0; channel < channels; ++channel) {
          const int64_t i = pixel * channels + channel;
          const int32_t place = args.argmax[i];
          const bool inside = place >= 0 && place < x_plane;
          y[i] = inside ? from[place * channels + channel] : T(0);
        }
      begin = row_end;
    }
  });
}

void gather(const Pool2dProblem& problem, const Pool2dArgs& args) {
  switch (problem.dtype) {
    case kFloat64: return run<uint64_t>(problem, args);
    case kFloat32: return run<uint32_t>(problem, args);
    default: return run<uint16_t>(problem, args);
  }
}
PYCONV_CPU_KERNEL("maxpool2d.gather.direct", gather, nullptr)

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
