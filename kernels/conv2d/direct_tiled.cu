// Direct convolution, tiled: a block stages a patch of the input and its filters in shared memory, once for all
// the products that need them, and every thread keeps a tile of sums in registers. fprop and dgrad are one gather
// (gather.cuh), so they are one kernel; "in" is x or dy, "out" y or dx.
//
//   out[n, out channel, row, column] = bias + sum over in channels and taps of  in[n, in channel, ...] * w[...]
//
// Both layouts: they differ in how a patch is staged and in how results are stored, not in between.
//
// Block:   plan.images x rows.tile x columns.tile pixels of one class  x  plan.filters out channels of one group,
//          over chunks of plan.channels in channels.
// Warp:    32 neighbouring pixels of a row (or of several short rows)  x  TN out channels.
// Thread:  TM pixels, one below the other,  x  TN out channels.
//
// For each in channel and tap, a warp reads TM times 32 neighbouring words of the patch and TN words of the
// filters, the same for all lanes: in float 4 + 4 accesses to shared memory for 64 FMAs. With 3x3 taps known when
// compiled, stride and dilation 1, a thread reads a column of TM + 2 pixels once for three rows of taps: 18 + 36
// accesses for 576 FMAs.
//
//   shared memory   filters   [in channel][tap][out channel]
//                   patch     [in channel][image][row][column]    (patch.cuh)
//                   sources   [image][row][column]                where that place lies in `in`
#include "conv2d/direct_tiled_stage.cuh"
#include "conv2d/register_tile.cuh"

namespace pyconv {

// ---- Compute -------------------------------------------------------------------------------------------------

// Adds the products of one chunk. `patch` and `filters` are where this thread's first pixel and filter lie.
template <int TM, int TN, class Sum>
PYCONV_DEVICE void multiply(Sum (&sums)[TM][TN], const TiledPlan& plan, const TiledBlock& block, const Sum* patch,
                            const Sum* filters, int channels) {
  const int taps = block.rows.taps * block.columns.taps;
  for (int tap = 0; tap < taps; ++tap) {
    const int row = tap / block.columns.taps * plan.rows.tap_step;
    const int column = tap % block.columns.taps * plan.columns.tap_step;
    const Sum* pixel = patch + row * plan.patch.row_pitch + plan.patch.column(column);
    const Sum* filter = filters + tap * plan.filter_pitch;
    for (int c = 0; c < channels; ++c) {
      Sum own_pixels[TM], own_filters[TN];
      PYCONV_UNROLL
      for (int i = 0; i < TM; ++i) own_pixels[i] = pixel[i * plan.rows.in_step * plan.patch.row_pitch];
      load_run(own_filters, filter);
      add_outer_product(sums, own_pixels, own_filters);
      pixel += plan.patch.channel_pitch;
      filter += taps * plan.filter_pitch;
    }
  }
}

// The same for kTaps x kTaps taps at a stride of kStride and dilation 1, known when compiled: a thread reads the
// pixels of a column once for all rows of taps.
template <int kTaps, int kStride, int TM, int TN, class Sum>
PYCONV_DEVICE void multiply_known(Sum (&sums)[TM][TN], const TiledPlan& plan, const Sum* patch, const Sum* filters,
                                  int channels) {
  constexpr int kPixels = (TM - 1) * kStride + kTaps;
  for (int c = 0; c < channels; ++c) {
    PYCONV_UNROLL_BY(kTaps <= 3 ? kTaps : 1)  // 7 x 7 taps unrolled would not fit the instruction cache
    for (int s = 0; s < kTaps; ++s) {
      const Sum* column = patch + s % kStride * plan.patch.column_pitch + s / kStride;
      Sum own_pixels[kPixels];
      PYCONV_UNROLL
      for (int i = 0; i < kPixels; ++i) own_pixels[i] = column[i * plan.patch.row_pitch];
      PYCONV_UNROLL
      for (int r = 0; r < kTaps; ++r) {
        Sum own_filters[TN];
        load_run(own_filters, filters + (r * kTaps + s) * plan.filter_pitch);
        PYCONV_UNROLL
        for (int i = 0; i < TM; ++i) {
          PYCONV_UNROLL
          for (int j = 0; j < TN; ++j) sums[i][j] = fused(own_pixels[i * kStride + r], own_filters[j], sums[i][j]);
        }
      }
    }
    patch += plan.patch.channel_pitch;
    filters += kTaps * kTaps * plan.filter_pitch;
  }
}

// ---- Store ---------------------------------------------------------------------------------------------------

// What a thread computes within the tile: TM rows from `row`, TN out channels from `out_channel`.
struct TiledThread {
  int image, row, column, out_channel;
  bool is_idle;  // where rows are short, the last lanes have no pixel
};

template <int TM, int TN, int kThreads>
PYCONV_DEVICE TiledThread tiled_thread(const TiledPlan& plan) {
  const int pixel_lanes = kThreads / (plan.filters / TN), runs = plan.rows.tile / TM;
  const int lane = int(threadIdx.x) % pixel_lanes, run = lane / plan.columns.tile;
  const bool is_idle = run / runs >= plan.patch.images;
  return {is_idle ? 0 : run / runs, run % runs * TM, lane % plan.columns.tile, int(threadIdx.x) / pixel_lanes * TN,
          is_idle};
}

// out = sums, or out += sums where a part of them is there already; V out channels at a time.
template <int V, Layout kLayout, int TM, int TN, class T, class Sum>
PYCONV_DEVICE void store(const Tensor<T, kLayout>& out, const Sum (&sums)[TM][TN], const TiledPlan& plan,
                         const TiledBlock& block, const TiledThread& own, int images, const T* bias,
                         bool is_first) {
  const int image = block.image + own.image, column = block.column + own.column;
  const int out_channel = block.out_channel + own.out_channel;  // within the group
  const int out_channels = plan.out_channels - out_channel,
            first_of_all = block.group * plan.out_channels + out_channel;
  if (own.is_idle || image >= images || column >= block.columns.out_count) return;
  PYCONV_UNROLL
  for (int i = 0; i < TM; ++i) {
    const int row = block.row + own.row + i;
    if (row >= block.rows.out_count) break;
    T* at = &out(image, first_of_all, block.rows.out_origin + row * block.rows.out_step,
                 block.columns.out_origin + column * block.columns.out_step);
    PYCONV_UNROLL
    for (int j = 0; j < TN; j += V) {
      if (j >= out_channels) break;
      Vector<T, V> run = {};
      if (!is_first) run = load_vector<V>(at);
      PYCONV_UNROLL
      for (int v = 0; v < V; ++v) {
        Sum before = widen(run.element[v]);
        if (is_first && bias) before = widen(bias[first_of_all + j + v]);
        run.element[v] = narrow<T>(before + sums[i][j + v]);
      }
      store_vector<V>(at, run);
      at += V * out.offset(0, 1, 0, 0);
    }
  }
}

template <class T, Layout kLayout, int TM, int TN, int kThreads, int kTaps, int kStride>
__global__ void __launch_bounds__(kThreads, 2)  // 2 blocks of 256 threads have 128 registers a thread: 64 are sums
    direct_tiled(Conv2dProblem problem, TiledPlan plan, const T* __restrict__ in_data, const T* __restrict__ w,
                 const T* __restrict__ bias, T* out_data) {
  using Sum = Accumulator<T>;
  constexpr int V = sizeof(T) == 8 ? 1 : kVector16<T>;  // eight lanes of doubles are whole sectors as they are
  constexpr int kOutVector = kVector16<T> < TN ? kVector16<T> : TN;
  static_assert(TN % kOutVector == 0, "a thread's channels are stored in whole vectors");

  const Tensor<const T, kLayout> in(in_data, plan.in_channels * problem.groups, plan.rows.in_extent,
                                    plan.columns.in_extent);
  const Tensor<T, kLayout> out(out_data, plan.out_channels * problem.groups, plan.rows.out_extent,
                               plan.columns.out_extent);
  PYCONV_SHARED(TiledBlock, block);
  PYCONV_DYNAMIC_SHARED(Sum, filters);
  Sum* patch = filters + plan.filters_size;
  int* sources = reinterpret_cast<int*>(patch + plan.patch_size);

  if (threadIdx.x == 0) block = tiled_block(problem, plan, blockIdx.x);
  __syncthreads();
  find_sources<kThreads>(sources, plan.patch, block.patch, in, int(problem.n));

  const bool is_aligned = plan.in_channels % V == 0 && plan.channels % V == 0;
  const int in_channels = block.rows.taps > 0 && block.columns.taps > 0 ? plan.in_channels : 0;
  int first_in = 0;
  do {  // once, if the sum is empty
    const bool is_first = first_in == 0;
    const int end_in = in_channels - first_in < plan.chain ? in_channels : first_in + plan.chain;
    Sum sums[TM][TN] = {};
    for (; first_in < end_in; first_in += plan.channels) {
      const int channels = end_in - first_in < plan.channels ? end_in - first_in : plan.channels;
      __syncthreads();  // the sources are found, and nobody needs the chunk before any more
      stage_patch<kThreads, V>(patch, plan.patch, block.patch, sources, in, first_in, channels, is_aligned);
      stage_filters<kThreads, kLayout>(filters, problem, plan, block, w, first_in, channels);
      __syncthreads();

      // Found anew rather than kept in registers while the next chunk is staged.
      const TiledThread own = tiled_thread<TM, TN, kThreads>(plan);
      const Sum* own_filters = filters + own.out_channel;
      const Sum* own_patch = patch + own.image * plan.patch.image_pitch +
                             own.row * plan.rows.in_step * plan.patch.row_pitch + own.column;
      if constexpr (kTaps > 0)
        multiply_known<kTaps, kStride>(sums, plan, own_patch, own_filters, channels);
      else
        multiply(sums, plan, block, own_patch, own_filters, channels);
    }
    const TiledThread own = tiled_thread<TM, TN, kThreads>(plan);
    if (kLayout == kNhwc && plan.out_channels % kOutVector == 0)
      store<kOutVector>(out, sums, plan, block, own, int(problem.n), bias, is_first);
    else
      store<1>(out, sums, plan, block, own, int(problem.n), bias, is_first);
  } while (first_in < in_channels);
}

}  // namespace pyconv
