// Direct convolution, channels last: x[n][h][w][c], w[k][r][s][c], y[n][p][q][k] (index_map.h for "in" and "out").
//
// Indirect convolution (Dukhan, "The Indirect Convolution Algorithm", 2019): a register tile holds mr output
// pixels x nr output channels. For every tap and input channel, one scalar of each pixel's input is broadcast
// against nr packed weights. Each pixel keeps its own offset, so a tile may take its pixels from anywhere.
//
// Borders: the outputs are cut into rectangles within which the same taps fall inside the image, and tiles are
// filled from one rectangle over several images. So no padding is read, stored or multiplied: border pixels cost
// less than inner ones, and an infinite weight outside the image spoils nothing.
//
// Order of every sum: blocks of input channels; within one, tap rows, tap columns, channels, in partial sums of
// about kChain products added one after the other; then bias or the blocks before are added.
//
// Elements E of 16 bits: a broadcast that widens would cost three instructions where a float's costs none, for every
// tap and panel. So the tiles know floats only, and a unit of 16-bit elements works in scratch (direct_nhwc_wide.h).
#pragma once
#include "direct_nhwc_tile.h"
#include "direct_nhwc_wide.h"
#include "direct_pack.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

// Consecutive outputs of an axis for which the same taps [tap_begin, tap_end) fall inside the input.
struct Span {
  int64_t begin, end, tap_begin, tap_end;
};

inline Span taps_inside(const AxisMap& axis, int64_t i) {
  const int64_t first = axis.position(i, 0), step = axis.offset_step;
  Span span{i, i + 1, 0, 0};
  if (first < axis.in_extent) {
    span.tap_begin = first < 0 ? std::min(axis.taps, ceil_div(-first, step)) : 0;
    span.tap_end = std::max(span.tap_begin, std::min(axis.taps, ceil_div(axis.in_extent - first, step)));
  }
  return span;
}

inline int64_t find_spans(const AxisMap& axis, int64_t begin, int64_t end, Span* spans) {
  int64_t count = 0;
  for (int64_t i = begin; i < end; ++i) {
    const Span span = taps_inside(axis, i);
    if (count > 0 && spans[count - 1].tap_begin == span.tap_begin && spans[count - 1].tap_end == span.tap_end)
      ++spans[count - 1].end;
    else
      spans[count++] = span;
  }
  return count;
}

template <class E>
struct NhwcPlan {
  using T = Accumulator<E>;
  using Config = NhwcConfig<T>;
  Gather g;
  int64_t panels, in_block;
  Units units;
  int64_t columns, column_block;  // of a class; 16 bits: as many as scratch is for
  int64_t spans_bytes, packed_bytes;
  NhwcWide<E> wide;

  NhwcPlan(const Conv2dProblem& problem, bool dgrad) : g(make_gather(problem, dgrad)) {
    panels = ceil_div(g.out_c, Config::kNr);
    // Blocks of even size, so that the last is not a splinter.
    const int64_t most = std::max<int64_t>(Config::kPanelBytes / (sizeof(T) * Config::kNr * g.taps), 16);
    in_block = round_up(std::max<int64_t>(1, ceil_div(g.in_c, ceil_div(g.in_c, most) + (g.in_c == 0))), 4);
    const int64_t in_per_pixel = g.dgrad ? 1 : problem.stride_h * problem.stride_w;
    int64_t pixel_bytes = sizeof(T) * in_per_pixel * std::min(in_block, std::max<int64_t>(1, g.in_c));
    if (sizeof(E) == 2) pixel_bytes = std::max(pixel_bytes, int64_t(sizeof(T)) * g.out_c);  // y is in scratch, too
    const int64_t pixels = std::max<int64_t>(Config::kInputBytes / pixel_bytes, 64);
    units = make_units(g, panels, pixels, 1);
    columns = g.cols(0).out_count;
    column_block = sizeof(E) == 2 ? ceil_div(columns, ceil_div(columns, pixels)) : columns;
    spans_bytes = round_up((units.rows + g.cols(0).out_count) * int64_t(sizeof(Span)), 64);
    packed_bytes = round_up(problem.groups * panels * panel_size() * int64_t(sizeof(T)), 64);
    wide = NhwcWide<E>(g, units, column_block, in_block, std::min(g.out_c, units.panels * Config::kNr));
  }
  int64_t panel_size() const { return g.taps * g.in_c * Config::kNr; }
  // The last panel of a group may fit into one vector.
  int64_t lanes(int64_t panel) const { return std::min(Config::kNr, g.out_c - panel * Config::kNr); }
  int64_t nr(int64_t panel) const { return lanes(panel) <= kLanes<T> ? kLanes<T> : Config::kNr; }
  int64_t thread_bytes() const { return spans_bytes + wide.bytes(); }
  int64_t workspace(int threads) const { return packed_bytes + threads * thread_bytes(); }
};

// One rectangle of one class: rows x cols of each image of the unit, against one panel and one block of in
// channels. x begins with the block's channels, y with the panel's.
template <class T>
void nhwc_rectangle(const Unit& unit, const AxisMap& rows, const AxisMap& cols, const Span& row_span,
                    const Span& col_span, int64_t in_count, const T* w, int64_t nr, const Pixmap<const T>& x,
                    const Pixmap<T>& y, const Epilogue<T>& epilogue) {
  Taps taps{row_span.tap_end - row_span.tap_begin, rows.offset_step * x.row,   cols.taps * in_count * nr,
            col_span.tap_end - col_span.tap_begin, cols.offset_step * x.pixel, in_count};
  if (taps.x_col_step == in_count) taps.run *= taps.cols, taps.cols = std::min<int64_t>(taps.cols, 1);
  w += (row_span.tap_begin * cols.taps + col_span.tap_begin) * in_count * nr;
  const T* from =
      x.data + rows.position(0, row_span.tap_begin) * x.row + cols.position(0, col_span.tap_begin) * x.pixel;
  T* to = y.data + rows.out_origin * y.row + cols.out_origin * y.pixel;

  Pixels<T> pixels;
  int count = 0;
  const auto flush = [&] {
    for (int m = count; m < NhwcConfig<T>::kMr; ++m) pixels.in[m] = pixels.in[count - 1];
    nr == kLanes<T> ? nhwc_tile_of<T, 1>(count, from, w, taps, pixels, to, epilogue)
                    : nhwc_tile_of<T, NhwcConfig<T>::kVectors>(count, from, w, taps, pixels, to, epilogue);
    count = 0;
  };
  for (int64_t n = unit.image; n < unit.image + unit.images; ++n) {
    for (int64_t i = row_span.begin; i < row_span.end; ++i) {
      const int64_t in = n * x.image + i * rows.in_step * x.row;
      const int64_t out = n * y.image + i * rows.out_step * y.row;
      for (int64_t j = col_span.begin; j < col_span.end; ++j) {
        pixels.in[count] = in + j * cols.in_step * x.pixel;
        pixels.out[count] = out + j * cols.out_step * y.pixel;
        if (++count == NhwcConfig<T>::kMr) flush();
      }
    }
  }
  if (count > 0) flush();
}

// One block of in channels of some columns of a unit; x begins with its channels, y with those of the unit's first panel.
template <class E, class T = Accumulator<E>>
void nhwc_block(const NhwcPlan<E>& plan, const Unit& unit, int64_t col, int64_t in_first, int64_t in_count,
                const T* packed, const T* bias, const Pixmap<const T>& x, const Pixmap<T>& y, Span* spans) {
  const Gather& g = plan.g;
  constexpr int64_t kNr = NhwcConfig<T>::kNr;
  Span *row_spans = spans, *col_spans = spans + plan.units.rows;
  for_each_class(g, [&](const AxisMap& rows, const AxisMap& cols, int64_t taps_before) {
    if (in_first > 0 && rows.taps * cols.taps == 0) return;  // the first block has left bias or 0
    const int64_t row_end = std::min(unit.row + unit.rows, rows.out_count);
    const int64_t row_count = find_spans(rows, unit.row, row_end, row_spans);
    const int64_t col_count = find_spans(cols, col, std::min(col + plan.column_block, cols.out_count), col_spans);
    for (int64_t i = 0; i < unit.panels; ++i) {
      const int64_t panel = unit.panel + i, nr = plan.nr(panel);
      const T* w = packed + (unit.group * plan.panels + panel) * plan.panel_size() +
                   (taps_before * g.in_c + rows.taps * cols.taps * in_first) * nr;
      const Pixmap<T> to{y.data + i * kNr, y.image, y.row, y.pixel};
      const Epilogue<T> epilogue{bias ? bias + i * kNr : nullptr, in_first > 0, plan.lanes(panel)};
      for (int64_t row = 0; row < row_count; ++row)
        for (int64_t col = 0; col < col_count; ++col)
          nhwc_rectangle(unit, rows, cols, row_spans[row], col_spans[col], in_count, w, nr, x, to, epilogue);
    }
  });
}

template <class E>
void direct_nhwc(const Conv2dProblem& problem, const Conv2dArgs& args, bool dgrad) {
  using T = Accumulator<E>;
  const NhwcPlan<E> plan(problem, dgrad);
  const Gather& g = plan.g;
  const E* w = static_cast<const E*>(args.b);
  const E* bias = static_cast<const E*>(args.bias);
  char* workspace = static_cast<char*>(args.workspace);
  T* packed = reinterpret_cast<T*>(workspace);
  constexpr int64_t kNr = NhwcConfig<T>::kNr;
  const int64_t x_c = g.in_c * problem.groups, y_c = g.out_c * problem.groups;

  // Pack.
  for_each_unit(problem.groups * plan.panels, plan.units.serial, [&](int64_t index, int) {
    const int64_t group = index / plan.panels, panel = index % plan.panels;
    pack_nhwc_panel(g, w, group, panel * kNr, plan.lanes(panel), plan.nr(panel), plan.in_block,
                    packed + index * plan.panel_size());
  });

  // Compute: a block of in channels x a panel stays in cache while all pixels of the unit pass.
  for_each_unit(plan.units.count(problem.groups), plan.units.serial, [&](int64_t index, int thread) {
    const Unit unit = unit_at(g, plan.units, plan.panels, index);
    char* scratch = workspace + plan.packed_bytes + thread * plan.thread_bytes();
    Span* spans = reinterpret_cast<Span*>(scratch);
    const int64_t out = unit.group * g.out_c + unit.panel * kNr;
    const Pixmap<const E> x{static_cast<const E*>(args.a) + unit.group * g.in_c, g.in_h * g.in_w * x_c,
                            g.in_w * x_c, x_c};
    const Pixmap<E> y{static_cast<E*>(args.out) + out, g.out_h * g.out_w * y_c, g.out_w * y_c, y_c};
    const int64_t out_c = std::min(g.out_c - unit.panel * kNr, unit.panels * kNr);
    for (int64_t col = 0; col < plan.columns; col += plan.column_block) {
      const int64_t columns = std::min(plan.column_block, plan.columns - col);
      const NhwcWideUnit<E> wide(plan.wide, g, unit, col, columns, scratch + plan.spans_bytes, out_c);
      const Pixmap<T> sums = wide.sums(y);
      const T* start = wide.bias(bias ? bias + out : nullptr);
      int64_t in_first = 0;
      do {  // at least once: without input channels y is bias or 0
        const int64_t in_count = std::min(plan.in_block, g.in_c - in_first);
        nhwc_block(plan, unit, col, in_first, in_count, packed, start, wide.input(x, in_first, in_count), sums,
                   spans);
        in_first += in_count;
      } while (in_first < g.in_c);
      wide.narrow(y);
    }
  });
}

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
