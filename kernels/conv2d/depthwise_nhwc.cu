// Depthwise convolution in nhwc, forward and input gradient: channels side by side, each with its own filter.
//
//   fprop   y[n,k,p,q]  = bias[k] + sum over r,s of   x[n,k/m,h,w] * w[k,r,s]
//   dgrad   dx[n,c,h,w] =           sum over j,r,s of dy[n,cm+j,p,q] * w[cm+j,r,s]     m filters per channel
//
// Thread:  V channels (16 bytes: one LDG.128 a load) of COLUMNS neighbouring outputs of a row. It walks along the
//          input columns they share: a 3x3 filter at stride 1 loads 3*(COLUMNS+2) vectors for COLUMNS outputs.
// Block:   VECTORS * V channels by blockDim.y strips of COLUMNS outputs. The block's filters are transposed into
//          shared memory, taps outermost, because w has each filter's taps side by side.
//
// Memory is the bound, as in depthwise_nchw.cu. A thread has up to 3*(COLUMNS+2) loads of 16 bytes in flight, so
// few warps hide the latency of DRAM: 64 KB in flight a multiprocessor need 4096 of them, 228 threads at 18 each.
//
// Padding takes no part in a sum. An output adds its taps in the order j, r, s, wherever it lies.
#include "common/numbers.h"
#include "common/vector.h"
#include "conv2d/depthwise_axis.cuh"

namespace pyconv {

// V > 1 takes one filter per channel, and channels that V divides. R == 0: as in depthwise_nchw.
template <class T, bool kDgrad, int R, int S, int STRIDE, int COLUMNS, int V, int VECTORS>
__global__ void __launch_bounds__(256, kDepthwiseBlocks<T>)
    depthwise_nhwc(Conv2dProblem problem, const T* __restrict__ in, const T* __restrict__ w,
                   const T* __restrict__ bias, T* __restrict__ out) {
  static_assert((R == 0) == (S == 0) && (R == 0) == (STRIDE == 0), "all known when compiling, or none");
  constexpr bool kShared = STRIDE > 0 && (!kDgrad || STRIDE == 1);
  constexpr int kChannels = VECTORS * V;  // of the block
  typedef Accumulator<T> Sum;
  PYCONV_SHARED(Sum, weights, [R ? R * S : 1][kChannels]);

  const DepthwiseGather<kDgrad, STRIDE> gather(problem);
  const int strips = int(ceil_div(gather.out_columns, COLUMNS));  // of a row
  const int64_t strip = int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
  const int first_channel = blockIdx.y * kChannels, own = threadIdx.x * V, channel = first_channel + own;
  const bool is_inside = strip < problem.n * gather.out_rows * strips && channel < gather.out_channels;
  const int64_t row = strip / strips;  // n and the output row together
  const int first_column = int(strip - row * strips) * COLUMNS;
  const int n = int(row / gather.out_rows), row_out = int(row - int64_t(n) * gather.out_rows);
  const T* image_in = in + int64_t(n) * gather.in_rows * gather.in_columns * gather.in_channels;

  Sum sums[COLUMNS][V] = {};
  for (int j = 0; j < gather.filters(); ++j) {
    if constexpr (R > 0) {
      if (j > 0) __syncthreads();  // the previous filters have been used
      const int thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
      for (int i = thread; i < R * S * kChannels; i += threads) {
        const int of_channel = first_channel + i / (R * S);
        const bool exists = of_channel < gather.out_channels;
        weights[i % (R * S)][i / (R * S)] =
            exists ? widen(w[int64_t(gather.filter(of_channel, j)) * R * S + i % (R * S)]) : Sum(0);
      }
      __syncthreads();
    }
    if (!is_inside) continue;
    const int k = gather.filter(channel, j);
    const T* channel_in = image_in + gather.in_channel(k);
    const int taps_r = R ? R : gather.taps_r, taps_s = S ? S : gather.taps_s;
    PYCONV_UNROLL_BY((kDgrad ? 1 : R ? R : 4))  // unrolled, dgrad spills registers
    for (int r = 0; r < taps_r; ++r) {
      const int row_in = gather.rows.input_at(row_out, r);
      if (row_in < 0) continue;
      const T* pixels = channel_in + int64_t(row_in) * gather.in_columns * gather.in_channels;
      if constexpr (kShared) {
        // fprop walks right along its input columns, dgrad left, so that every output meets tap s before s+1.
        const int start = first_column + (kDgrad ? COLUMNS - 1 : 0);
        PYCONV_UNROLL
        for (int step = 0; step < (COLUMNS - 1) * STRIDE + S; ++step) {
          const int column_in = gather.columns.input_at(start, step);
          if (column_in < 0) continue;
          const Vector<T, V> values = load_vector<V>(pixels + int64_t(column_in) * gather.in_channels);
          PYCONV_UNROLL
          for (int o = 0; o < COLUMNS; ++o) {
            const int s = step - (kDgrad ? COLUMNS - 1 - o : o * STRIDE);
            if (s < 0 || s >= S) continue;
            PYCONV_UNROLL
            for (int v = 0; v < V; ++v)
              sums[o][v] = fused(widen(values.element[v]), weights[r * S + s][own + v], sums[o][v]);
          }
        }
      } else {
        for (int s = 0; s < taps_s; ++s) {
          PYCONV_UNROLL
          for (int o = 0; o < COLUMNS; ++o) {
            const int column_in = gather.columns.input_at(first_column + o, s);
            if (column_in < 0) continue;
            const Vector<T, V> values = load_vector<V>(pixels + int64_t(column_in) * gather.in_channels);
            PYCONV_UNROLL
            for (int v = 0; v < V; ++v) {
              const Sum weight =
                  R ? weights[r * S + s][own + v] : widen(w[(int64_t(k + v) * taps_r + r) * taps_s + s]);
              sums[o][v] = fused(widen(values.element[v]), weight, sums[o][v]);
            }
          }
        }
      }
    }
  }
  if (!is_inside) return;

  T* pixels_out = out + (row * gather.out_columns + first_column) * gather.out_channels + channel;
  PYCONV_UNROLL
  for (int o = 0; o < COLUMNS; ++o) {
    if (first_column + o >= gather.out_columns) break;
    Vector<T, V> result;
    PYCONV_UNROLL
    for (int v = 0; v < V; ++v)
      result.element[v] = narrow<T>(bias ? sums[o][v] + widen(bias[channel + v]) : sums[o][v]);
    store_vector(pixels_out + int64_t(o) * gather.out_channels, result);
  }
}

}  // namespace pyconv
