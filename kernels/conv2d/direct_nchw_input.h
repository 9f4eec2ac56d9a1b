// The input panel of the nchw direct kernel: the rows of one unit, copied so that every tap is a plain vector
// load.
//
//   panel[in channel][row phase][column phase][row][image][width]
//
// Output pixels are numbered f = (row*images + image)*width + column. Taps whose input positions agree modulo the
// stride share a phase: phase ph holds position(0, ph), position(1, ph), ... and tap t = ph + u*phases finds the
// input of pixel f at f + (u*shift_step rows or columns). So stride, dilation and padding all end here, and
// vectors run over the ends of rows and images. Where rows are short, each tap column gets a phase of its own
// instead: copies then need no halo columns, and no lane is lost (kSplitWidth). Elements E of 16 bits are widened on
// the way: the panel holds T, a float.
#pragma once
#include "common/simd.h"
#include "index_map.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

// Copies are worth their scratch where the halo is more than 1/20 of a short row and taps are few.
constexpr int64_t kSplitHalo = 20, kSplitTaps = 8;
template <class T>
constexpr int64_t kSplitWidth = 4 * kLanes<T>;

struct Phases {
  int64_t phases, shift_step, halo;

  Phases(const AxisMap& axis, bool split) {
    phases = split ? axis.taps : std::min(axis.taps, axis.in_step / std::gcd(axis.in_step, axis.offset_step));
    shift_step = phases * axis.offset_step / axis.in_step;
    halo = axis.taps > 0 ? (axis.taps - 1) / phases * shift_step : 0;
  }
  int64_t phase(int64_t tap) const { return tap % phases; }
  int64_t shift(int64_t tap) const { return tap / phases * shift_step; }
};

template <class T>
bool split_columns(const AxisMap& cols) {
  return cols.taps <= kSplitTaps && cols.out_count <= kSplitWidth<T> &&
         Phases(cols, false).halo * kSplitHalo > cols.out_count;
}

// The panel of one class of one unit.
template <class T>
struct InputPanel {
  AxisMap rows, cols;
  Phases row_phases, col_phases;
  int64_t row, row_count, images;  // of the unit
  int64_t width, line, phase_size, channel_size;

  InputPanel(const AxisMap& rows, const AxisMap& cols, int64_t row, int64_t row_count, int64_t images)
      : rows(rows),
        cols(cols),
        row_phases(rows, false),
        col_phases(cols, split_columns<T>(cols)),
        row(row),
        row_count(row_count),
        images(images) {
    width = cols.out_count + col_phases.halo;
    line = images * width;
    phase_size = (row_count + row_phases.halo) * line;
    channel_size = row_phases.phases * col_phases.phases * phase_size;
  }
  int64_t pixels() const { return row_count * line; }
  // Where tap (tap_row, tap_col) of pixel 0 lies in a channel.
  int64_t tap_offset(int64_t tap_row, int64_t tap_col) const {
    return (row_phases.phase(tap_row) * col_phases.phases + col_phases.phase(tap_col)) * phase_size +
           row_phases.shift(tap_row) * line + col_phases.shift(tap_col);
  }
};

// Which elements of a packed row are image: [begin, end) of width; the others are padding.
struct RowRange {
  int64_t width, begin, end;
};

// Of the positions first, first + in_step, ...: those inside the input.
inline RowRange elements_inside(int64_t first, const AxisMap& axis, int64_t width) {
  const int64_t begin = first < 0 ? std::min(ceil_div(-first, axis.in_step), width) : 0;
  const int64_t end = first < axis.in_extent ? std::min(ceil_div(axis.in_extent - first, axis.in_step), width) : 0;
  return begin < end ? RowRange{width, begin, end} : RowRange{width, 0, 0};
}

template <class T, int... kLane>
inline Vec<T> even_elements(const Vec<T>& low, const Vec<T>& high, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(low, high, (2 * kLane)...);
}

template <class E>
inline Vec<E> load_clamped(const E* from, int64_t begin, int64_t end) {
  return load_range(from, int(std::clamp<int64_t>(begin, 0, kLanes<E>)),
                    int(std::clamp<int64_t>(end, 0, kLanes<E>)));
}

// to[j] = from[j*step] for begin <= j < end, 0 for the other j < width. May write up to a vector beyond to[width].
template <class T, class E>
inline void pack_row(T* to, const E* from, int64_t step, const RowRange& range) {
  constexpr int64_t L = kLanes<T>;
  if (step == 1) {
    for (int64_t j = 0; j < range.width; j += L)
      store(to + j, range.begin <= j && j + L <= range.end
                        ? load(from + j)
                        : load_clamped(from + j, range.begin - j, range.end - j));
  } else if (step == 2) {
    for (int64_t j = 0; j < range.width; j += L) {
      const int64_t begin = 2 * (range.begin - j), end = 2 * (range.end - j) - 1;
      store(to + j, even_elements<T>(load_clamped(from + 2 * j, begin, end),
                                     load_clamped(from + 2 * j + L, begin - L, end - L),
                                     std::make_integer_sequence<int, L>{}));
    }
  } else {
    int64_t j = 0;
    for (; j < range.begin; ++j) to[j] = T(0);
    for (; j < range.end; ++j) to[j] = widen(from[j * step]);
    for (; j < range.width; ++j) to[j] = T(0);
  }
}

// `rows` rows of each image: from points at the first row's first column, which may lie left of the image.
template <class T, class E>
T* pack_rows(const InputPanel<T>& panel, T* to, const E* from, int64_t image_stride, int64_t row_stride,
             int64_t rows, const RowRange& range) {
  constexpr int64_t L = kLanes<T>;
  const int64_t step = panel.cols.in_step, x_step = panel.rows.in_step * row_stride, width = range.width;
  if (step == 1 && panel.images == 1 && x_step == width && range.begin == 0 && range.end == width) {
    pack_row(to, from, 1, {rows * width, 0, rows * width});  // the rows are one
    return to + rows * width;
  }
  if (step <= 2 && width <= 2 * L) {  // the loop below with its lane ranges taken out of it
    int begin[4], end[4];             // of each vector of the source
    for (int v = 0; v < 4; ++v) {
      begin[v] = int(std::clamp<int64_t>(step * range.begin - v * L, 0, L));
      end[v] = int(std::clamp<int64_t>(step * (range.end - 1) + 1 - v * L, 0, L));
    }
    constexpr std::make_integer_sequence<int, L> kLane{};
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t image = 0; image < panel.images; ++image, to += width) {
        const E* row = from + image * image_stride + i * x_step;
        const Vec<T> first = load_range(row, begin[0], end[0]), second = load_range(row + L, begin[1], end[1]);
        store(to, step == 1 ? first : even_elements<T>(first, second, kLane));
        if (width <= L) continue;
        store(to + L, step == 1 ? second
                                : even_elements<T>(load_range(row + 2 * L, begin[2], end[2]),
                                                   load_range(row + 3 * L, begin[3], end[3]), kLane));
      }
    return to;
  }
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t image = 0; image < panel.images; ++image, to += width)
      pack_row(to, from + image * image_stride + i * x_step, step, range);
  return to;
}

// One channel: x points at it in the unit's first image. Rows and images are written in ascending order, so what
// pack_row writes too far is overwritten, and only after the last channel is room needed.
template <class T, class E>
T* pack_channel(const InputPanel<T>& panel, const E* x, int64_t image_stride, int64_t row_stride, T* to) {
  const AxisMap &rows = panel.rows, &cols = panel.cols;
  const int64_t count = panel.row_count + panel.row_phases.halo;
  for (int64_t row_phase = 0; row_phase < panel.row_phases.phases; ++row_phase) {
    const int64_t first_row = rows.position(panel.row, row_phase);
    const RowRange inside = elements_inside(first_row, rows, count);
    for (int64_t col_phase = 0; col_phase < panel.col_phases.phases; ++col_phase) {
      const int64_t first_col = cols.position(0, col_phase);
      const E* from = x + (first_row + inside.begin * rows.in_step) * row_stride + first_col;
      std::fill(to, to + inside.begin * panel.line, T(0));
      to = pack_rows(panel, to + inside.begin * panel.line, from, image_stride, row_stride,
                     inside.end - inside.begin, elements_inside(first_col, cols, panel.width));
      std::fill(to, to + (count - inside.end) * panel.line, T(0));
      to += (count - inside.end) * panel.line;
    }
  }
  return to;
}

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
