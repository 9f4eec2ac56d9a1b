// im2col and col2im: the matrix whose product with the filters is a convolution, and the way back.
//
//   im2col   col[(c,r,s), (n,p,q)] = x[n,c,h,w], 0 where h,w is padding
//   col2im   dx[n,c,h,w] = sum of dcol[(c,r,s), (n,p,q)] over the r,s,p,q that map to h,w
//
//            h = p*stride_h - pad_top  + r*dilation_h
//            w = q*stride_w - pad_left + s*dilation_w
//
//   fprop    y = w * col        dgrad    dcol = w^T * dy, dx = col2im(dcol)        wgrad    dw = dy * col^T
//
// In memory, for a chunk of images (im2col_gemm_launch.py) and with `pitch` elements from line to line:
//
//   nchw   col[c r s][n p q]           lines of pixels; the lines of a group's channels follow each other
//   nhwc   col[group][n p q][r s c]    lines of one pixel's patch, channels innermost as in x and w
//
// Thread:  all taps of one pixel of one channel; nhwc: of kVector channels, what 16 bytes hold where the channels of
//          a group are a multiple of that, else 1. So one thread divides its index once for r*s elements.
// Lanes:   run along the pixels (nchw) or the channels (nhwc), as x, dx and the lines of col do.
//
// The matrix has r*s / (stride_h*stride_w) times the elements of x, and all of it is written and read once: that
// traffic is the price for standing on a plain matrix product, and what an implicit GEMM saves.
//
// col2im is a gather: a thread adds up all that reaches its element of dx, in the order of r and s. So there are no
// atomics, the sum has one order, and padding takes no part: where a tap lies on padding, its dcol is not read.
//
// After K. Chellapilla, S. Puri and P. Simard, High performance convolutional neural networks for document
// processing (2006), and Y. Jia's Caffe (2014).
#include "common/numbers.h"
#include "common/vector.h"

namespace pyconv {

// The images of one step, and the matrix's leading dimension. Within a chunk every index fits an int. p and q are the
// problem's, which a thread would need a division of 64 bits for.
struct ColumnChunk {
  int64_t first_image;
  int32_t images, pitch, p, q;
};

// Registers are not what bounds these kernels, but told nothing the compiler aims at 6 blocks and spills.
constexpr int kColumnThreads = 256, kColumnBlocks = 4;

// A pixel and a channel: one item of either kernel. Pixels are those of y (im2col) or those of x (col2im).
struct ColumnItem {
  int image, row, column, c;
};

template <Layout kLayout, int kVector>
PYCONV_DEVICE ColumnItem column_item(unsigned item, unsigned channels, unsigned images, unsigned rows,
                                     unsigned columns) {
  const unsigned vectors = channels / kVector, pixels = images * rows * columns;
  const unsigned pixel = kLayout == kNhwc ? item / vectors : item % pixels;
  ColumnItem at;
  at.c = int(kLayout == kNhwc ? item % vectors : item / pixels) * kVector;
  at.column = int(pixel % columns);
  at.row = int(pixel / columns % rows);
  at.image = int(pixel / columns / rows);
  return at;
}

// Where the taps of a channel are in the lines of the matrix: col[pixel*pixel_stride + tap*tap_stride].
template <Layout kLayout>
struct ColumnLines {
  int64_t channel, pixel_stride, tap_stride;  // `channel`: of pixel 0 and tap 0

  PYCONV_HOST_DEVICE ColumnLines(const Conv2dProblem& problem, const ColumnChunk& chunk, int c) {
    const int group_c = int(problem.group_c()), taps = int(problem.r * problem.s);
    const int pixels = chunk.images * chunk.p * chunk.q;
    channel = kLayout == kNhwc ? int64_t(c / group_c) * pixels * chunk.pitch + c % group_c
                               : int64_t(c) * taps * chunk.pitch;
    pixel_stride = kLayout == kNhwc ? chunk.pitch : 1;
    tap_stride = kLayout == kNhwc ? group_c : chunk.pitch;
  }
};

template <class T, Layout kLayout, int kVector>
__global__ void __launch_bounds__(kColumnThreads, kColumnBlocks)
    im2col(Conv2dProblem problem, ColumnChunk chunk, const T* __restrict__ x, T* __restrict__ col) {
  const int channels = int(problem.c), height = int(problem.h), width = int(problem.w);
  const int rows = chunk.p, columns = chunk.q;
  const unsigned item = blockIdx.x * kColumnThreads + threadIdx.x;
  if (item >= unsigned(chunk.images) * rows * columns * (channels / kVector)) return;
  const ColumnItem at = column_item<kLayout, kVector>(item, channels, chunk.images, rows, columns);
  const int first_h = at.row * int(problem.stride_h) - int(problem.pad_top);
  const int first_w = at.column * int(problem.stride_w) - int(problem.pad_left);
  const int taps_r = int(problem.r), taps_s = int(problem.s);

  const int x_w_stride = kLayout == kNhwc ? channels : 1, x_h_stride = width * x_w_stride;
  x += (chunk.first_image + at.image) * channels * height * width +
       (kLayout == kNhwc ? at.c : at.c * height * width);
  const ColumnLines<kLayout> lines(problem, chunk, at.c);
  col += lines.channel + ((at.image * rows + at.row) * columns + at.column) * lines.pixel_stride;

  for (int r = 0; r < taps_r; ++r) {
    const int h = first_h + r * int(problem.dilation_h);
    for (int s = 0; s < taps_s; ++s) {
      const int w = first_w + s * int(problem.dilation_w);
      Vector<T, kVector> element = {};
      if (h >= 0 && h < height && w >= 0 && w < width)
        element = load_vector<kVector>(x + (h * x_h_stride + w * x_w_stride));
      store_vector(col, element);
      col += lines.tap_stride;
    }
  }
}

// Along one axis, the outputs that a pixel of x takes part in, tap after tap: p = (h + pad - r*dilation) / stride, if
// that is whole. A step of r takes a constant off the quotient and the rest, so one division serves all taps.
struct OutputWalk {
  int quotient, rest;

  PYCONV_HOST_DEVICE OutputWalk(int padded, int stride) : quotient(padded / stride), rest(padded % stride) {}
  PYCONV_HOST_DEVICE bool is_output(int outputs) const { return rest == 0 && quotient >= 0 && quotient < outputs; }
  PYCONV_HOST_DEVICE void next_tap(int stride, int dilation) {
    quotient -= dilation / stride, rest -= dilation % stride;  // the compiler divides once, before the loop
    if (rest < 0) rest += stride, --quotient;
  }
};

template <class T, Layout kLayout, int kVector>
__global__ void __launch_bounds__(kColumnThreads, kColumnBlocks)
    col2im(Conv2dProblem problem, ColumnChunk chunk, const Accumulator<T>* __restrict__ col, T* __restrict__ dx) {
  const int channels = int(problem.c), height = int(problem.h), width = int(problem.w);
  const int rows = chunk.p, columns = chunk.q;
  const unsigned item = blockIdx.x * kColumnThreads + threadIdx.x;
  if (item >= unsigned(chunk.images) * height * width * (channels / kVector)) return;
  const ColumnItem at = column_item<kLayout, kVector>(item, channels, chunk.images, height, width);
  const int stride_h = int(problem.stride_h), dilation_h = int(problem.dilation_h), taps_r = int(problem.r);
  const int stride_w = int(problem.stride_w), dilation_w = int(problem.dilation_w), taps_s = int(problem.s);
  const ColumnLines<kLayout> lines(problem, chunk, at.c);
  col += lines.channel + at.image * rows * columns * lines.pixel_stride;

  constexpr int kLoad = kVector > 1 ? kVector16<Accumulator<T>> : 1;  // dcol is not rounded to T yet
  Accumulator<T> sum[kVector] = {};
  OutputWalk p(at.row + int(problem.pad_top), stride_h);
  for (int r = 0; r < taps_r; ++r) {
    OutputWalk q(at.column + int(problem.pad_left), stride_w);
    for (int s = 0; s < taps_s; ++s) {
      if (p.is_output(rows) && q.is_output(columns)) {
        const int64_t pixel = (p.quotient * columns + q.quotient) * lines.pixel_stride;
        const Accumulator<T>* from = col + pixel + (r * taps_s + s) * lines.tap_stride;
        PYCONV_UNROLL
        for (int i = 0; i < kVector; i += kLoad) {
          const auto loaded = load_vector<kLoad>(from + i);
          PYCONV_UNROLL
          for (int j = 0; j < kLoad; ++j) sum[i + j] += loaded.element[j];
        }
      }
      q.next_tap(stride_w, dilation_w);
    }
    p.next_tap(stride_h, dilation_h);
  }

  Vector<T, kVector> element;
  PYCONV_UNROLL
  for (int i = 0; i < kVector; ++i) element.element[i] = narrow<T>(sum[i]);
  dx += (chunk.first_image + at.image) * channels * height * width;
  const int pixel = at.row * width + at.column;
  store_vector(dx + (kLayout == kNhwc ? pixel * channels + at.c : at.c * height * width + pixel), element);
}

}  // namespace pyconv
