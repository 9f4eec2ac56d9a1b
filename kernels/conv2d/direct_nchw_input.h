// The input panel of the nchw direct kernel: the rows of one unit, copied so that every tap is a plain vector
// load.
//
//   panel[in channel][row phase][column phase][row][image][width]
//
// Output pixels are numbered f = (row*images + image)*width + column. Taps whose input positions agree modulo the
// stride share a phase: phase ph holds position(0, ph), position(1, ph), ... and tap t = ph + u*phases finds the
// input of pixel f at f + (u*shift_step rows or columns). So stride, dilation and padding all end here, and
// vectors run over the ends of rows and images. Where rows are short, each tap column gets a phase of its own
// instead: copies then need no halo columns, and no lane is lost (kSplitWidth).
#pragma once
#include "common/simd.h"
#include "index_map.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

// Rows of at most two vectors: a halo of 2 columns would cost 6 % of the lanes and more.
template <class T>
constexpr int64_t kSplitWidth = 2 * kLanes<T>;
constexpr int64_t kSplitTaps = 8;  // copies cost scratch: not for very wide filters

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
  return cols.out_count <= kSplitWidth<T> && cols.taps <= kSplitTaps;
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

// Lanes begin <= lane < end from memory (0 <= begin, end <= kLanes), 0 in the others, whose memory is not
// touched.
template <class T>
inline Vec<T> load_range(const T* from, int begin, int end) {
#if defined(__AVX512F__)
  if (begin >= end) return Vec<T>{};
  const uint32_t lanes = ((1u << end) - 1) & ~((1u << begin) - 1);
  if constexpr (sizeof(T) == 4) {
    return (Vec<T>)_mm512_maskz_loadu_ps(__mmask16(lanes), from);
  } else {
    return (Vec<T>)_mm512_maskz_loadu_pd(__mmask8(lanes), from);
  }
#else
  Vec<T> value = {};
  for (int lane = begin; lane < end; ++lane) value[lane] = from[lane];
  return value;
#endif
}

// The even ones of the next 2*kLanes elements.
template <class T, int... kLane>
inline Vec<T> even_elements(const T* from, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(load(from), load(from + kLanes<T>), (2 * kLane)...);
}

// to[j] = from[j*step] for begin <= j < end, 0 for the other j < width. May write up to a vector beyond to[width].
template <class T>
inline void copy_row(T* to, const T* from, int64_t width, int64_t step, int64_t begin, int64_t end) {
  constexpr int64_t L = kLanes<T>;
  if (step == 1) {
    for (int64_t j = 0; j < width; j += L) {
      if (begin <= j && j + L <= end) {
        store(to + j, load(from + j));
      } else {
        const int first = int(std::clamp<int64_t>(begin - j, 0, L)),
                  last = int(std::clamp<int64_t>(end - j, 0, L));
        store(to + j, load_range(from + j, first, last));
      }
    }
    return;
  }
  int64_t j = 0;
  for (; j < std::min(begin, width); ++j) to[j] = T(0);
  if (step == 2)  // reads one element beyond the last it keeps, so it must not keep the row's last
    for (; j + L < end; j += L)
      store(to + j, even_elements<T>(from + 2 * j, std::make_integer_sequence<int, L>{}));
  for (; j < end; ++j) to[j] = from[j * step];
  for (; j < width; ++j) to[j] = T(0);
}

// One channel: x points at it in the unit's first image. Rows and images are written in ascending order, so what
// copy_row writes too far is overwritten, and only after the last channel is room needed.
template <class T>
T* pack_channel(const InputPanel<T>& panel, const T* x, int64_t x_image_stride, int64_t x_row_stride, T* to) {
  const AxisMap& cols = panel.cols;
  for (int64_t row_phase = 0; row_phase < panel.row_phases.phases; ++row_phase) {
    const int64_t first_row = panel.rows.position(panel.row, row_phase);
    for (int64_t col_phase = 0; col_phase < panel.col_phases.phases; ++col_phase) {
      const int64_t first = cols.position(0, col_phase), step = cols.in_step;
      const int64_t begin = first < 0 ? std::min(ceil_div(-first, step), panel.width) : 0;
      const int64_t end =
          first < cols.in_extent ? std::min(ceil_div(cols.in_extent - first, step), panel.width) : 0;
      for (int64_t i = 0; i < panel.row_count + panel.row_phases.halo; ++i) {
        const int64_t row = first_row + i * panel.rows.in_step;
        const bool inside = row >= 0 && row < panel.rows.in_extent;
        for (int64_t image = 0; image < panel.images; ++image, to += panel.width) {
          const T* from = x + image * x_image_stride + (inside ? row : 0) * x_row_stride + first;
          copy_row(to, from, panel.width, step, inside ? begin : 0, inside ? end : 0);
        }
      }
    }
  }
  return to;
}

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
