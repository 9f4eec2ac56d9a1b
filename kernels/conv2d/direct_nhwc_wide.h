// The nhwc direct kernel's operands as floats: where its tiles read x and write sums.
//
// float, double   in the tensors themselves
// 16 bits         in scratch of one thread: what a unit reads of x, a block of in channels at a time, each element
//                 widened once however many taps and panels read it; the unit's part of y, which is rounded once, when
//                 the last block is done; and its bias. Long rows are taken some columns at a time.
//
// Scratch is addressed as the tensor is, by image, row and column: a pixmap's data may point before its memory.
#pragma once
#include "common/simd.h"
#include "index_map.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

// Element (n, h, w, c) is data[n*image + h*row + w*pixel + c].
template <class T>
struct Pixmap {
  T* data;
  int64_t image, row, pixel;
};

// What outputs i of all classes of an axis read: i*step + first to i*step + last.
struct Reach {
  int64_t first = 0, last = -1, step = 1;

  template <class Axis>
  static Reach of(int64_t classes, int64_t in_extent, const Axis& axis_of) {
    Reach reach{in_extent, -1, 1};
    for (int64_t residue = 0; residue < classes; ++residue) {
      const AxisMap axis = axis_of(residue);
      if (axis.taps == 0) continue;
      reach.first = std::min(reach.first, axis.position(0, 0));
      reach.last = std::max(reach.last, axis.position(0, axis.taps - 1));
      reach.step = axis.in_step;
    }
    return reach;
  }
  int64_t most(int64_t outputs, int64_t extent) const {
    return std::clamp<int64_t>((outputs - 1) * step + last - first + 1, 0, extent);
  }
};

// Outputs of one axis: of a class from, to; the elements of x and of y that belong to them.
struct Stretch {
  int64_t begin, end, x_begin, x_end, y_begin, y_end;

  Stretch(int64_t begin, int64_t count, const Reach& reach, int64_t in_extent, int64_t out_extent,
          int64_t out_step)
      : begin(begin), end(begin + count) {
    x_begin = std::clamp<int64_t>(begin * reach.step + reach.first, 0, in_extent);
    x_end = std::clamp((end - 1) * reach.step + reach.last + 1, x_begin, in_extent);
    y_begin = std::min(begin * out_step, out_extent), y_end = std::min(end * out_step, out_extent);
  }
};

// Sizes of the scratch of one thread, for the rows of a unit and some columns.
template <class E>
struct NhwcWide {
  using T = Accumulator<E>;
  int64_t x_bytes = 0, y_bytes = 0, bias_bytes = 0;
  Reach rows, cols;

  NhwcWide() = default;
  NhwcWide(const Gather& g, const Units& units, int64_t columns, int64_t in_block, int64_t out_c) {
    if (sizeof(E) != 2) return;
    rows = Reach::of(g.row_classes, g.in_h, [&](int64_t residue) { return g.rows(residue); });
    cols = Reach::of(g.col_classes, g.in_w, [&](int64_t residue) { return g.cols(residue); });
    const int64_t x_pixels = rows.most(units.rows, g.in_h) * cols.most(columns, g.in_w);
    const int64_t y_pixels = units.rows * g.rows(0).out_step * columns * g.cols(0).out_step;
    x_bytes = bytes_of(units.images * x_pixels * in_block + kLanes<E>);  // the last store may pass the end
    y_bytes = bytes_of(units.images * y_pixels * out_c);
    bias_bytes = bytes_of(out_c);
  }
  static int64_t bytes_of(int64_t elements) { return round_up(elements * int64_t(sizeof(T)), 64); }
  int64_t bytes() const { return x_bytes + y_bytes + bias_bytes; }
};

template <class E>
class NhwcWideUnit {
 public:
  using T = Accumulator<E>;

  // Columns [col, col + columns) of each class.
  NhwcWideUnit(const NhwcWide<E>& sizes, const Gather& g, const Unit& unit, int64_t col, int64_t columns,
               char* scratch, int64_t out_c)
      : unit_(unit),
        x_(reinterpret_cast<T*>(scratch)),
        y_(reinterpret_cast<T*>(scratch + sizes.x_bytes)),
        bias_(reinterpret_cast<T*>(scratch + sizes.x_bytes + sizes.y_bytes)),
        out_c_(out_c),
        rows_(unit.row, unit.rows, sizes.rows, g.in_h, g.out_h, g.rows(0).out_step),
        cols_(col, columns, sizes.cols, g.in_w, g.out_w, g.cols(0).out_step) {}

  // What the unit reads of x, channels [in_first, in_first + in_count).
  Pixmap<const T> input(const Pixmap<const E>& x, int64_t in_first, int64_t in_count) const {
    if constexpr (sizeof(E) != 2) {
      return {x.data + in_first, x.image, x.row, x.pixel};
    } else {
      const int64_t columns = cols_.x_end - cols_.x_begin, row = columns * in_count;
      const int64_t image = (rows_.x_end - rows_.x_begin) * row;
      T* to = x_;
      for (int64_t n = unit_.image; n < unit_.image + unit_.images; ++n)
        for (int64_t h = rows_.x_begin; h < rows_.x_end; ++h, to += row) {
          const E* from = x.data + n * x.image + h * x.row + cols_.x_begin * x.pixel + in_first;
          if (in_count == x.pixel) {
            widen_run(from, row, to);
          } else {
            for (int64_t w = 0; w < columns; ++w) widen_pixel(from + w * x.pixel, in_count, to + w * in_count);
          }
        }
      return {x_ - unit_.image * image - rows_.x_begin * row - cols_.x_begin * in_count, image, row, in_count};
    }
  }

  Pixmap<T> sums(const Pixmap<E>& y) const {
    if constexpr (sizeof(E) != 2) {
      return y;
    } else {
      const int64_t row = (cols_.y_end - cols_.y_begin) * out_c_, image = (rows_.y_end - rows_.y_begin) * row;
      return {y_ - unit_.image * image - rows_.y_begin * row - cols_.y_begin * out_c_, image, row, out_c_};
    }
  }

  const T* bias(const E* bias) const {
    if constexpr (sizeof(E) != 2) {
      return bias;
    } else {
      if (!bias) return nullptr;
      widen_run(bias, out_c_, bias_);
      return bias_;
    }
  }

  // y = the sums, rounded.
  void narrow(const Pixmap<E>& y) const {
    if constexpr (sizeof(E) == 2) {
      const int64_t columns = cols_.y_end - cols_.y_begin;
      const T* from = y_;
      for (int64_t n = unit_.image; n < unit_.image + unit_.images; ++n)
        for (int64_t h = rows_.y_begin; h < rows_.y_end; ++h, from += columns * out_c_) {
          E* to = y.data + n * y.image + h * y.row + cols_.y_begin * y.pixel;
          if (out_c_ == y.pixel) {
            narrow_run(from, columns * out_c_, to);
          } else {
            for (int64_t w = 0; w < columns; ++w) narrow_run(from + w * out_c_, out_c_, to + w * y.pixel);
          }
        }
    }
  }

 private:
  // As widen_run, but may write up to a vector past the end: over the next pixel, which comes later.
  static void widen_pixel(const E* from, int64_t count, T* to) {
    int64_t i = 0;
    for (; i + kLanes<E> <= count; i += kLanes<E>) store(to + i, load(from + i));
    if (i < count) store(to + i, load_partial(from + i, int(count - i)));
  }

  const Unit& unit_;
  T *x_, *y_, *bias_;
  int64_t out_c_;
  Stretch rows_, cols_;
};

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
