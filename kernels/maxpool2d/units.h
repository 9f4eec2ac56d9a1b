// The units of parallel work of max-pooling, and what 16-bit elements need of them.
//
// The kernels compare and add floats and doubles. For 16-bit elements a unit widens the rows it reads into scratch,
// runs the float kernel on them, and narrows what came out: each element is widened once, however many windows read
// it, and there is one kernel. Scratch stays in the second-level cache. A maximum is one of the elements, so it is
// narrowed to the bits it had.
#pragma once
#include "best.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

// Bytes of a cache line, to which scratch is aligned.
constexpr int64_t kLineBytes = 64;
template <class T>
inline int64_t scratch_bytes(int64_t elements) {
  return (elements * int64_t(sizeof(Accumulator<T>)) + kLineBytes - 1) / kLineBytes * kLineBytes;
}

// Forward: a unit is some whole planes (nchw: of one channel; nhwc: images), or some output rows of one plane.
struct RowUnits {
  int64_t planes, p_extent, x_row, y_row;  // rows in elements; nhwc: of all channels
  int64_t plane_rows, window_rows;         // of x: in a plane, and under one window
  int64_t stride;
  int64_t unit_planes, unit_rows;  // of one unit; more than one plane only if whole planes

  RowUnits(const Pool2dProblem& problem, int64_t unit_elements)
      : p_extent(problem.p()),
        plane_rows(problem.h),
        window_rows((problem.r - 1) * problem.dilation_h + 1),
        stride(problem.stride_h) {
    const bool nhwc = problem.layout == kNhwc;
    planes = nhwc ? problem.n : problem.n * problem.c;
    x_row = problem.w * (nhwc ? problem.c : 1), y_row = problem.q() * (nhwc ? problem.c : 1);
    const int64_t plane = plane_rows * x_row + p_extent * y_row;
    unit_planes = plane < unit_elements ? smaller(planes, unit_elements / plane) : 1;
    unit_rows = p_extent;
    if (plane > unit_elements) {
      const int64_t row = smaller(stride, plane_rows) * x_row + y_row;  // what an output row adds
      const int64_t most = row < unit_elements ? unit_elements / row : 1;
      const int64_t parts = (p_extent + most - 1) / most;
      unit_rows = (p_extent + parts - 1) / parts;
    }
  }
  static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
  int64_t per_plane() const { return (p_extent + unit_rows - 1) / unit_rows; }
  int64_t count() const { return (planes + unit_planes - 1) / unit_planes * per_plane(); }
  // Most rows of x and of y in one unit.
  int64_t x_rows() const {
    return unit_planes > 1 ? unit_planes * plane_rows
                           : smaller(plane_rows, (unit_rows - 1) * stride + window_rows);
  }
  int64_t y_rows() const { return unit_planes * unit_rows; }
};

// Output rows [row, end) of all planes, numbered plane * P + p.
template <class T>
using RunRows = void (*)(const Pool2dProblem&, const T* x, const Output<T>& y, int64_t row, int64_t end);

template <class T>
inline int64_t forward_workspace(const Pool2dProblem& problem, int threads) {
  if (sizeof(T) != 2) return 0;
  const RowUnits units(problem, kUnitElements<T>);
  return threads *
         (scratch_bytes<T>(units.x_rows() * units.x_row) + scratch_bytes<T>(units.y_rows() * units.y_row));
}

template <class T>
void run_forward(const Pool2dProblem& problem, RunRows<Accumulator<T>> run, const Pool2dArgs& args) {
  using Wide = Accumulator<T>;
  const RowUnits units(problem, kUnitElements<T>);
  const T* x = static_cast<const T*>(args.a);
  T* y = static_cast<T*>(args.out);
  const int64_t per_plane = units.per_plane(), p_extent = units.p_extent;
  parallel_for(units.count(), [&](int64_t index, int thread) {
    const int64_t first = index / per_plane * units.unit_planes;  // plane
    const int64_t last = units.smaller(first + units.unit_planes, units.planes) - 1;
    const int64_t p = index % per_plane * units.unit_rows, p_end = units.smaller(p + units.unit_rows, p_extent);
    const int64_t row = first * p_extent + p, end = last * p_extent + p_end;
    if constexpr (sizeof(T) != 2) {
      run(problem, x, Output<T>{y, args.argmax_out}, row, end);
    } else {
      // What is read of x is one run of rows, from h_begin of the first plane to h_end of the last.
      const auto clamp = [&](int64_t h) { return h < 0 ? 0 : units.smaller(h, units.plane_rows); };
      const int64_t h_begin = clamp(p * units.stride - problem.pad_top);
      const int64_t h_end = clamp((p_end - 1) * units.stride - problem.pad_top + units.window_rows);
      const int64_t x_begin = (first * units.plane_rows + h_begin) * units.x_row;
      const int64_t x_end = (last * units.plane_rows + h_end) * units.x_row;
      const int64_t x_bytes = scratch_bytes<T>(units.x_rows() * units.x_row);
      const int64_t y_bytes = scratch_bytes<T>(units.y_rows() * units.y_row);
      char* scratch = static_cast<char*>(args.workspace) + thread * (x_bytes + y_bytes);
      Wide* wide_x = reinterpret_cast<Wide*>(scratch);
      Wide* wide_y = reinterpret_cast<Wide*>(scratch + x_bytes);
      widen_run(x + x_begin, x_end - x_begin, wide_x);
      // The kernel counts from the tensors' first elements.
      run(problem, wide_x - x_begin, Output<Wide>{wide_y - row * units.y_row, args.argmax_out}, row, end);
      narrow_run(wide_y, (end - row) * units.y_row, y + row * units.y_row);
    }
  });
}

// Backward: run(dy, dx) on floats or doubles, for a run of dy's elements and one of dx's.
template <class T, class Run>
void dgrad_in_float(const T* dy, int64_t dy_size, T* dx, int64_t dx_size, char* scratch, const Run& run) {
  if constexpr (sizeof(T) != 2) {
    run(dy, dx);
  } else {
    float* wide_dy = reinterpret_cast<float*>(scratch);
    float* wide_dx = reinterpret_cast<float*>(scratch + scratch_bytes<T>(dy_size));
    widen_run(dy, dy_size, wide_dy);
    run(wide_dy, wide_dx);
    narrow_run(wide_dx, dx_size, dx);
  }
}

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
