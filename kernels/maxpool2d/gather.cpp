// The pooling's linear map with the argmax held fixed: y[n,c,p,q] = x[n,c,argmax[n,c,p,q]].
//
// It is the tangent of max-pooling and the derivative of its backward. A place of -1 (a window that covers
// no element) reads as 0. Any other place is checked against the plane, since a caller may pass its own.
#include "common/cpu.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

template <class T>
void run(const Pool2dProblem& problem, const Pool2dArgs& args) {
  const T* x = static_cast<const T*>(args.a);
  T* y = static_cast<T*>(args.out);
  const int64_t x_plane = problem.h * problem.w, y_plane = problem.p() * problem.q();
  const bool is_nhwc = problem.layout == kNhwc;
  // nchw: one index per (n, c) plane. nhwc: one per image, places of all channels side by side.
  const int64_t rows = is_nhwc ? problem.n : problem.n * problem.c;
  const int64_t channels = is_nhwc ? problem.c : 1;
  parallel_for(rows, [&](int64_t row, int) {
    const T* from = x + row * x_plane * channels;
    const int32_t* places = args.argmax + row * y_plane * channels;
    T* to = y + row * y_plane * channels;
    for (int64_t pixel = 0; pixel < y_plane; ++pixel)
      for (int64_t channel = 0; channel < channels; ++channel) {
        const int64_t i = pixel * channels + channel;
        const bool inside = places[i] >= 0 && places[i] < x_plane;
        to[i] = inside ? from[places[i] * channels + channel] : T(0);
      }
  });
}

void gather(const Pool2dProblem& problem, const Pool2dArgs& args) {
  problem.dtype == kFloat64 ? run<double>(problem, args) : run<float>(problem, args);
}
PYCONV_CPU_KERNEL("maxpool2d.gather.direct", gather, nullptr)

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
