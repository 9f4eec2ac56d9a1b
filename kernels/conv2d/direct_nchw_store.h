// Where the lanes of an nchw tile go: pixels of the input panel's numbering (direct_nchw_input.h) to rows of y.
#pragma once
#include "direct_nchw_input.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

// Lanes [lane, lane + length) of a tile lie side by side in one output row, from element `out` of the channel on.
struct Segment {
  int64_t lane, length, out;
};

// The segments of pixels [first, end) of the panel; lanes over halo columns belong to none.
template <class T>
int find_segments(const Gather& g, const InputPanel<T>& panel, int64_t first, int64_t end, Segment* segments) {
  const AxisMap &rows = panel.rows, &cols = panel.cols;
  const int64_t image_stride = g.problem.groups * g.out_c * g.out_h * g.out_w;
  int64_t row = first / panel.line, image = first % panel.line / panel.width, col = first % panel.width;
  int count = 0;
  for (int64_t f = first; f < end;) {
    const int64_t length = std::min(cols.out_count - col, end - f);
    if (length > 0) {
      const int64_t out = image * image_stride + (rows.out_origin + (panel.row + row) * rows.out_step) * g.out_w +
                          cols.out_origin + col * cols.out_step;
      Segment* last = segments + count - 1;
      if (count > 0 && cols.out_step == 1 && last->lane + last->length == f - first &&
          last->out + last->length == out)
        last->length += length;
      else
        segments[count++] = {f - first, length, out};
    }
    f += panel.width - col, col = 0;
    if (++image == panel.images) image = 0, ++row;
  }
  return count;
}

// Elements E of 16 bits are rounded here, once.
template <class E>
void store_segment(E* to, int64_t step, const Accumulator<E>* from, int64_t length) {
  constexpr int64_t L = kLanes<E>;
  if (step == 1) {
    int64_t i = 0;
    for (; i + L <= length; i += L) store<E>(to + i, load(from + i));
    if (i < length) store_partial<E>(to + i, load(from + i), int(length - i));
  } else {
    for (int64_t i = 0; i < length; ++i) to[i * step] = narrow<E>(from[i]);
  }
}

// The inverse, with to's later lanes overwritten: for ascending segments.
template <class T>
void load_segment(const T* from, int64_t step, T* to, int64_t length) {
  if (step == 1) {
    int64_t i = 0;
    for (; i + kLanes<T> <= length; i += kLanes<T>) store(to + i, load(from + i));
    if (i < length) store(to + i, load_partial(from + i, int(length - i)));
  } else {
    for (int64_t i = 0; i < length; ++i) to[i] = from[i * step];
  }
}

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
