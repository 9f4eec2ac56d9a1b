// The nhwc direct kernel's operands as floats: where its tiles read x and write sums.
//
// float, double   in the tensors themselves
// 16 bits         in scratch of one thread: the rows of x that a unit reads, a block of in channels at a time, each
//                 widened once however many taps and panels read it; the unit's rows of y, which are rounded once, when the
//                 last block is done; and its bias
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

// Sizes of the scratch of one thread. x's rows cover what the taps of all classes reach.
template <class E>
struct NhwcWide {
  using T = Accumulator<E>;
  int64_t x_bytes = 0, y_bytes = 0, bias_bytes = 0;
  int64_t first = 0, last = 0, step = 1;  // row i of a class reads rows i*step + first to i*step + last of x

  NhwcWide() = default;
  NhwcWide(const Gather& g, const Units& units, int64_t in_block, int64_t out_c) {
    if (sizeof(E) != 2) return;
    first = g.in_h, last = -1;
    for (int64_t residue = 0; residue < g.row_classes; ++residue) {
      const AxisMap rows = g.rows(residue);
      if (rows.taps == 0) continue;
      first = std::min(first, rows.position(0, 0)), last = std::max(last, rows.position(0, rows.taps - 1));
      step = rows.in_step;
    }
    const int64_t x_rows = std::clamp<int64_t>((units.rows - 1) * step + last - first + 1, 0, g.in_h);
    const int64_t y_rows = units.rows * g.rows(0).out_step;
    x_bytes = bytes_of(units.images * x_rows * g.in_w * in_block + kLanes<E>);  // the last store may pass the end
    y_bytes = bytes_of(units.images * y_rows * g.out_w * out_c);
    bias_bytes = bytes_of(out_c);
  }
  static int64_t bytes_of(int64_t elements) { return round_up(elements * int64_t(sizeof(T)), 64); }
  int64_t bytes() const { return x_bytes + y_bytes + bias_bytes; }
};

template <class E>
class NhwcWideUnit {
 public:
  using T = Accumulator<E>;

  NhwcWideUnit(const NhwcWide<E>& sizes, const Gather& g, const Unit& unit, char* scratch, int64_t out_c)
      : g_(g),
        unit_(unit),
        x_(reinterpret_cast<T*>(scratch)),
        y_(reinterpret_cast<T*>(scratch + sizes.x_bytes)),
        bias_(reinterpret_cast<T*>(scratch + sizes.x_bytes + sizes.y_bytes)),
        out_c_(out_c) {
    const int64_t out_step = g.rows(0).out_step;
    x_row_ = std::clamp<int64_t>(unit.row * sizes.step + sizes.first, 0, g.in_h);
    x_row_end_ = std::clamp((unit.row + unit.rows - 1) * sizes.step + sizes.last + 1, x_row_, g.in_h);
    y_row_ = unit.row * out_step;
    y_row_end_ = std::min(y_row_ + unit.rows * out_step, g.out_h);
  }

  // The unit's rows of x, channels [in_first, in_first + in_count).
  Pixmap<const T> input(const Pixmap<const E>& x, int64_t in_first, int64_t in_count) const {
    if constexpr (sizeof(E) != 2) {
      return {x.data + in_first, x.image, x.row, x.pixel};
    } else {
      const int64_t row = g_.in_w * in_count, image = (x_row_end_ - x_row_) * row;
      for (int64_t n = 0; n < unit_.images; ++n)
        for (int64_t h = x_row_; h < x_row_end_; ++h) {
          const E* from = x.data + (unit_.image + n) * x.image + h * x.row + in_first;
          T* to = x_ + n * image + (h - x_row_) * row;
          if (in_count == x.pixel) {
            widen_run(from, row, to);
          } else {
            for (int64_t w = 0; w < g_.in_w; ++w) widen_pixel(from + w * x.pixel, in_count, to + w * in_count);
          }
        }
      return {x_ - unit_.image * image - x_row_ * row, image, row, in_count};
    }
  }

  Pixmap<T> sums(const Pixmap<E>& y) const {
    if constexpr (sizeof(E) != 2) {
      return y;
    } else {
      const int64_t row = g_.out_w * out_c_, image = (y_row_end_ - y_row_) * row;
      return {y_ - unit_.image * image - y_row_ * row, image, row, out_c_};
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
      const T* from = y_;
      for (int64_t n = unit_.image; n < unit_.image + unit_.images; ++n)
        for (int64_t h = y_row_; h < y_row_end_; ++h) {
          E* to = y.data + n * y.image + h * y.row;
          if (out_c_ == y.pixel) {
            narrow_run(from, g_.out_w * out_c_, to);
            from += g_.out_w * out_c_;
          } else {
            for (int64_t w = 0; w < g_.out_w; ++w, from += out_c_) narrow_run(from, out_c_, to + w * y.pixel);
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

  const Gather& g_;
  const Unit& unit_;
  T *x_, *y_, *bias_;
  int64_t out_c_, x_row_, x_row_end_, y_row_, y_row_end_;
};

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
