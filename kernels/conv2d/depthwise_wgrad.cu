// Depthwise convolution, filter gradient, in both layouts.
//
//   dw[k,r,s] = sum over n,p,q of dy[n,k,p,q] * x[n,k/m,h,w]       m filters per channel
//
// A filter has few elements and each is a sum over every pixel, so the pixels are cut into chunks of whole output
// rows. A block adds up one chunk for a few filters, all R*S taps at once, so that dy and x are read once; its
// sums go to partial[chunk][k][r][s], and a second kernel adds the chunks in their order. What a chunk is follows
// from the problem alone, so the bits do too.
//
// nchw: a block is one filter; its threads take the chunk's pixels in turn, neighbours side by side.
// nhwc: a block is 32 filters by blockDim.y pixels; a warp reads 32 neighbouring channels of one pixel.
//
// With R == 0 the filter's size is known when running, and a block adds up one tap, blockIdx.z.
#include "common/numbers.h"
#include "common/warp.h"
#include "conv2d/depthwise_axis.cuh"

namespace pyconv {

// The pixels of one chunk: `rows` output rows from `first`, of all images counted through.
struct DepthwiseChunk {
  int first, rows;

  PYCONV_HOST_DEVICE DepthwiseChunk(int chunk, int rows_per_chunk, int64_t all_rows)
      : first(chunk * rows_per_chunk) {
    rows = int(all_rows - first < rows_per_chunk ? all_rows - first : rows_per_chunk);
  }
};

// Adds dy[n,k,p,q] * x[n,c,h,w] to each tap's sum. `first_tap` is 0, or the only tap if R == 0.
template <class T, Layout kLayout, int R, int S, int STRIDE>
PYCONV_DEVICE void add_pixel(const DepthwiseGather<false, STRIDE>& gather, const T* x, const T* dy, int k, int row,
                             int q, int first_tap, Accumulator<T> (&sums)[R ? R * S : 1]) {
  const int n = row / gather.out_rows, p = row - n * gather.out_rows, c = gather.in_channel(k);
  const int64_t y_at =
      kLayout == kNhwc ? (int64_t(row) * gather.out_columns + q) * gather.out_channels + k
                       : ((int64_t(n) * gather.out_channels + k) * gather.out_rows + p) * gather.out_columns + q;
  const Accumulator<T> gradient = widen(dy[y_at]);
  PYCONV_UNROLL
  for (int tap = 0; tap < (R ? R * S : 1); ++tap) {
    const int r = R ? tap / (S ? S : 1) : first_tap / gather.taps_s;
    const int s = R ? tap % (S ? S : 1) : first_tap % gather.taps_s;
    const int h = gather.rows.input_at(p, r), w = gather.columns.input_at(q, s);
    if (h < 0 || w < 0) continue;
    const int64_t x_at =
        kLayout == kNhwc ? ((int64_t(n) * gather.in_rows + h) * gather.in_columns + w) * gather.in_channels + c
                         : ((int64_t(n) * gather.in_channels + c) * gather.in_rows + h) * gather.in_columns + w;
    sums[tap] = fused(gradient, widen(x[x_at]), sums[tap]);
  }
}

template <class T, int R, int S, int STRIDE, int THREADS>
__global__ void __launch_bounds__(THREADS, kDepthwiseBlocks<T>)
    depthwise_wgrad_nchw(Conv2dProblem problem, const T* __restrict__ x, const T* __restrict__ dy,
                         Accumulator<T>* __restrict__ partial, int rows_per_chunk) {
  constexpr int kTaps = R ? R * S : 1, kWarps = THREADS / kWarpSize;
  typedef Accumulator<T> Sum;
  PYCONV_SHARED(Sum, warp_sums, [kWarps][kTaps]);
  const DepthwiseGather<false, STRIDE> gather(problem);
  const DepthwiseChunk chunk(blockIdx.y, rows_per_chunk, problem.n * gather.out_rows);
  const int k = blockIdx.x, first_tap = blockIdx.z, all_taps = gather.taps_r * gather.taps_s;

  Sum sums[kTaps] = {};
  for (int pixel = threadIdx.x; pixel < chunk.rows * gather.out_columns; pixel += THREADS) {
    const int row = chunk.first + pixel / gather.out_columns, q = pixel % gather.out_columns;
    add_pixel<T, kNchw, R, S, STRIDE>(gather, x, dy, k, row, q, first_tap, sums);
  }

  PYCONV_UNROLL
  for (int tap = 0; tap < kTaps; ++tap) {
    const Sum sum = warp_sum(sums[tap]);
    if (threadIdx.x % kWarpSize == 0) warp_sums[threadIdx.x / kWarpSize][tap] = sum;
  }
  __syncthreads();
  for (int tap = threadIdx.x; tap < kTaps; tap += THREADS) {
    Sum sum = 0;
    PYCONV_UNROLL
    for (int warp = 0; warp < kWarps; ++warp) sum += warp_sums[warp][tap];
    partial[(int64_t(blockIdx.y) * gather.out_channels + k) * all_taps + first_tap + tap] = sum;
  }
}

template <class T, int R, int S, int STRIDE, int PIXELS>
__global__ void __launch_bounds__(kWarpSize* PIXELS, kDepthwiseBlocks<T>)
    depthwise_wgrad_nhwc(Conv2dProblem problem, const T* __restrict__ x, const T* __restrict__ dy,
                         Accumulator<T>* __restrict__ partial, int rows_per_chunk) {
  constexpr int kTaps = R ? R * S : 1;
  typedef Accumulator<T> Sum;
  PYCONV_SHARED(Sum, pixel_sums, [PIXELS][kWarpSize]);
  const DepthwiseGather<false, STRIDE> gather(problem);
  const DepthwiseChunk chunk(blockIdx.y, rows_per_chunk, problem.n * gather.out_rows);
  const int k = blockIdx.x * kWarpSize + threadIdx.x, first_tap = blockIdx.z;
  const int all_taps = gather.taps_r * gather.taps_s;

  Sum sums[kTaps] = {};
  if (k < gather.out_channels) {
    for (int pixel = threadIdx.y; pixel < chunk.rows * gather.out_columns; pixel += PIXELS) {
      const int row = chunk.first + pixel / gather.out_columns, q = pixel % gather.out_columns;
      add_pixel<T, kNhwc, R, S, STRIDE>(gather, x, dy, k, row, q, first_tap, sums);
    }
  }

  PYCONV_UNROLL
  for (int tap = 0; tap < kTaps; ++tap) {
    if (tap > 0) __syncthreads();  // the previous tap's sums have been read
    pixel_sums[threadIdx.y][threadIdx.x] = sums[tap];
    __syncthreads();
    if (threadIdx.y > 0 || k >= gather.out_channels) continue;
    Sum sum = 0;
    PYCONV_UNROLL
    for (int pixel = 0; pixel < PIXELS; ++pixel) sum += pixel_sums[pixel][threadIdx.x];
    partial[(int64_t(blockIdx.y) * gather.out_channels + k) * all_taps + first_tap + tap] = sum;
  }
}

// dw[k,r,s] = sum over chunks of partial[chunk][k][r][s]; one thread an element. With one channel per filter both
// layouts keep dw as [k][r][s].
template <class T, int THREADS>
__global__ void __launch_bounds__(THREADS) depthwise_wgrad_add(const Accumulator<T>* __restrict__ partial,
                                                               int chunks, int64_t elements, T* __restrict__ dw) {
  const int64_t element = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (element >= elements) return;
  Accumulator<T> sum = 0;
  for (int chunk = 0; chunk < chunks; ++chunk) sum += partial[chunk * elements + element];
  dw[element] = narrow<T>(sum);
}

}  // namespace pyconv
