// fprop and dgrad as one gather: every output pixel sums over a list of taps, for each tap one input pixel.
//
//   fprop   y[n,k,p,q]  = sum over c,r,s of  x[n,c,h,w] * w[k,c,r,s]      h = p*stride_h - pad_top + r*dilation_h
//   dgrad   dx[n,c,h,w] = sum over k,r,s of dy[n,k,p,q] * w[k,c,r,s]      p = (h + pad_top - r*dilation_h) /
//   stride_h
//                         where the division is exact                    (the same for w, q with pad_left)
//
// "out" and "in" stand for y and x in fprop, for dx and dy in dgrad. The rows of dx fall into stride_h residue
// classes (h mod stride_h); within one class the rows r that divide exactly are the same and form an arithmetic
// progression, and so do the rows p they read. Columns alike. So no zero is ever multiplied in for the stride,
// and one AxisMap describes an axis of either pass.
#pragma once
#include <algorithm>
#include <numeric>

#include "common/cpu.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }  // a >= 0
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// One axis of one class. Tap t of the class is filter row tap_origin + t*tap_step; output i of the class is output
// row out_origin + i*out_step and reads input row position(i, t), which may lie outside [0, in_extent).
struct AxisMap {
  int64_t out_origin, out_step, out_count;
  int64_t in_extent, in_step;
  int64_t taps, tap_origin, tap_step;
  int64_t offset_origin, offset_step;  // offset_step > 0: taps are ordered by the input they read

  int64_t position(int64_t i, int64_t t) const { return i * in_step + offset_origin + t * offset_step; }
};

inline AxisMap fprop_axis(int64_t in, int64_t out, int64_t taps, int64_t stride, int64_t pad, int64_t dilation) {
  return {0, 1, out, in, stride, taps, 0, 1, -pad, dilation};
}

inline AxisMap dgrad_axis(int64_t in, int64_t out, int64_t taps, int64_t stride, int64_t pad, int64_t dilation,
                          int64_t residue) {
  AxisMap axis{residue, stride, ceil_div(out - residue, stride), in, 1, 0, 0, 1, 0, 1};
  int64_t first = 0;
  const int64_t candidates = std::min(taps, stride);
  while (first < candidates && (residue + pad - first * dilation) % stride != 0) ++first;
  if (first == candidates) return axis;
  const int64_t common = std::gcd(stride, dilation);
  axis.taps = (taps - 1 - first) / (stride / common) + 1;
  axis.tap_step = -(stride / common);  // a later filter row reads an earlier input row
  axis.tap_origin = first - (axis.taps - 1) * axis.tap_step;
  axis.offset_origin = (residue + pad - axis.tap_origin * dilation) / stride;
  axis.offset_step = dilation / common;
  return axis;
}

struct Gather {
  Conv2dProblem problem;
  bool dgrad;
  int64_t in_c, out_c;  // channels per group
  int64_t in_h, in_w, out_h, out_w;
  int64_t row_classes, col_classes;
  int64_t taps;                                // of the filter; each belongs to at most one class
  int64_t w_in_stride, w_out_stride;           // of w along in and out channels, in elements
  int64_t w_r_stride, w_s_stride, w_g_stride;  // along r, s and groups

  AxisMap rows(int64_t residue) const {
    const Conv2dProblem& a = problem;
    return dgrad ? dgrad_axis(in_h, out_h, a.r, a.stride_h, a.pad_top, a.dilation_h, residue)
                 : fprop_axis(in_h, out_h, a.r, a.stride_h, a.pad_top, a.dilation_h);
  }
  AxisMap cols(int64_t residue) const {
    const Conv2dProblem& a = problem;
    return dgrad ? dgrad_axis(in_w, out_w, a.s, a.stride_w, a.pad_left, a.dilation_w, residue)
                 : fprop_axis(in_w, out_w, a.s, a.stride_w, a.pad_left, a.dilation_w);
  }
  int64_t macs() const { return problem.n * problem.groups * out_h * out_w * out_c * in_c * taps; }
};

inline Gather make_gather(const Conv2dProblem& a, bool dgrad) {
  Gather g{};
  g.problem = a;
  g.dgrad = dgrad;
  g.taps = a.r * a.s;
  const int64_t c = a.group_c(), k = a.group_k();
  const int64_t w_c_stride = a.layout == kNhwc ? 1 : g.taps, w_k_stride = c * g.taps;
  g.w_s_stride = a.layout == kNhwc ? c : 1;
  g.w_r_stride = a.s * g.w_s_stride;
  g.w_g_stride = k * w_k_stride;
  if (dgrad) {
    g.in_c = k, g.out_c = c, g.w_in_stride = w_k_stride, g.w_out_stride = w_c_stride;
    g.in_h = a.p(), g.in_w = a.q(), g.out_h = a.h, g.out_w = a.w;
    g.row_classes = std::min(a.stride_h, a.h), g.col_classes = std::min(a.stride_w, a.w);
  } else {
    g.in_c = c, g.out_c = k, g.w_in_stride = w_c_stride, g.w_out_stride = w_k_stride;
    g.in_h = a.h, g.in_w = a.w, g.out_h = a.p(), g.out_w = a.q();
    g.row_classes = g.col_classes = 1;
  }
  return g;
}

// body(rows, cols, taps_before): taps_before counts the taps of the classes already visited, which is where a
// class's weights begin in a packed panel.
template <class Body>
void for_each_class(const Gather& g, Body&& body) {
  int64_t taps_before = 0;
  for (int64_t row_class = 0; row_class < g.row_classes; ++row_class) {
    const AxisMap rows = g.rows(row_class);
    for (int64_t col_class = 0; col_class < g.col_classes; ++col_class) {
      const AxisMap cols = g.cols(col_class);
      body(rows, cols, taps_before);
      taps_before += rows.taps * cols.taps;
    }
  }
}

// ---- Units of parallel work --------------------------------------------------------------------------

constexpr int64_t kUnits = 32;            // balances up to 16 threads
constexpr int64_t kUnitMacs = 1 << 18;    // a unit of some 10 us: a hundred times what handing it out costs
constexpr int64_t kSerialMacs = 1 << 17;  // below this, waking a second thread costs more than it saves
constexpr int64_t kUnitPixels = 256;      // least pixels over which a unit reuses a weight panel

// A unit computes `images` images x `rows` rows of every class x `panels` panels of output channels. It depends on
// the problem alone.
struct Units {
  int64_t images, rows, panels;
  int64_t image_blocks, row_blocks, panel_blocks;
  bool serial;

  int64_t count(int64_t groups) const { return groups * image_blocks * row_blocks * panel_blocks; }
};

struct Unit {
  int64_t group, image, images, row, rows, panel, panels;
};

// pixel_limit: most pixels of one class for which the unit's input stays in cache. least_panels: a unit does not
// take fewer if there are more, because it has to prepare its input again.
inline Units make_units(const Gather& g, int64_t panels, int64_t pixel_limit, int64_t least_panels) {
  const int64_t n = g.problem.n, groups = g.problem.groups;
  const int64_t rows = ceil_div(g.out_h, g.dgrad ? g.problem.stride_h : 1);
  const int64_t cols = ceil_div(g.out_w, g.dgrad ? g.problem.stride_w : 1);
  const int64_t pixels = n * groups * rows * cols, macs = g.macs();
  int64_t target = std::max({kUnitPixels, pixels / kUnits, kUnitMacs / (macs / pixels + 1)});
  target = std::max(int64_t(1), std::min(target, pixel_limit));

  Units u{};
  u.serial = macs < kSerialMacs;
  u.image_blocks = rows * cols < target ? ceil_div(n, target / (rows * cols)) : n;
  u.images = ceil_div(n, u.image_blocks);
  u.image_blocks = ceil_div(n, u.images);
  u.row_blocks = rows * cols < target ? 1 : std::min(rows, ceil_div(rows * cols, target));
  u.rows = ceil_div(rows, u.row_blocks);
  u.row_blocks = ceil_div(rows, u.rows);
  const int64_t pixel_blocks = groups * u.image_blocks * u.row_blocks;
  u.panel_blocks = std::min({std::max<int64_t>(1, panels / least_panels), ceil_div(kUnits, pixel_blocks),
                             macs / pixel_blocks / kUnitMacs + 1});
  u.panels = ceil_div(panels, u.panel_blocks);
  u.panel_blocks = ceil_div(panels, u.panels);
  return u;
}

inline Unit unit_at(const Gather& g, const Units& u, int64_t panels, int64_t index) {
  Unit unit;
  unit.panel = index % u.panel_blocks * u.panels, index /= u.panel_blocks;
  unit.row = index % u.row_blocks * u.rows, index /= u.row_blocks;
  unit.image = index % u.image_blocks * u.images;
  unit.group = index / u.image_blocks;
  unit.panels = std::min(u.panels, panels - unit.panel);
  unit.rows = u.rows;  // a class may have fewer: its last rows are cut off there
  unit.images = std::min(u.images, g.problem.n - unit.image);
  return unit;
}

// Runs body(index, thread), in parallel unless the whole problem is too small for it.
template <class Body>
void for_each_unit(int64_t count, bool serial, Body&& body) {
  if (!serial) return parallel_for(count, body);
  for (int64_t index = 0; index < count; ++index) body(index, 0);
}

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
