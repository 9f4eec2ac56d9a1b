// The first layer of a network ("stem"): an image of c <= 4 channels, large filters, a stride. fprop.
//
//   y[n,k,p,q] = bias[k] + sum over c,r,s of  x[n,c,h,w] * w[k,c,r,s]
//
// It is direct_tiled.cu's tile and register tile (Block, Warp, Thread as there) for a sum that is short: all
// channels and taps, 147 products for 7x7 of 3 channels, are one chunk. So
//   - the filters of a block lie in shared memory all at once, and the block keeps them for tile after tile of
//     pixels: there are as many blocks as the GPU holds, and block b computes tiles b, b + grid, ...;
//   - the patch of all channels is staged once for a tile, with one barrier before and one after;
//   - taps and stride are known when compiled (7x7 by 2, 11x11 by 4, 3x3): a thread reads the 13 pixels that the 7
//     taps of its 4 rows need once, instead of 28.
// Filters too large for that (11x11) go channel by channel.
//
// dgrad has only c out channels. It is direct_tiled's kernel with a register tile of many pixels and few channels
// (direct_stem_launch.py). wgrad: direct_stem_wgrad.cu.
#include "conv2d/direct_tiled.cu"

namespace pyconv {

template <class T, Layout kLayout, int TM, int TN, int kThreads, int kTaps, int kStride>
__global__ void __launch_bounds__(kThreads, 2)
    direct_stem(Conv2dProblem problem, TiledPlan plan, int32_t blocks, const T* __restrict__ x_data,
                const T* __restrict__ w, const T* __restrict__ bias, T* y_data) {
  using Sum = Accumulator<T>;
  constexpr int V = kVector16<T>;
  const Tensor<const T, kLayout> x(x_data, plan.in_channels, plan.rows.in_extent, plan.columns.in_extent);
  const Tensor<T, kLayout> y(y_data, plan.out_channels, plan.rows.out_extent, plan.columns.out_extent);
  PYCONV_SHARED(TiledBlock, block);
  PYCONV_DYNAMIC_SHARED(Sum, filters);
  Sum* patch = filters + plan.filters_size;

  // The grid is a multiple of the blocks of filters: a block meets the same filters in all of its tiles.
  for (unsigned index = blockIdx.x; index < unsigned(blocks); index += gridDim.x) {
    __syncthreads();  // everyone has stored the tile before
    if (threadIdx.x == 0) block = tiled_block(problem, plan, index);
    Sum sums[TM][TN] = {};
    for (int first_in = 0; first_in < plan.in_channels; first_in += plan.channels) {
      __syncthreads();  // the block is known, and nobody needs the channels before any more
      auto source_at = [&](int place) { return source_of(place, plan.patch, block.patch, x, int(problem.n)); };
      stage_by_pixels<kThreads>(patch, plan.patch, x, &x(block.image, first_in, 0, 0), plan.channels, source_at);
      if (plan.channels < plan.in_channels || index == blockIdx.x)
        stage_filters<kThreads, kLayout>(filters, problem, plan, block, w, first_in, plan.channels);
      __syncthreads();

      const TiledThread own = tiled_thread<TM, TN, kThreads>(plan);
      const Sum* own_filters = filters + own.out_channel;
      const Sum* own_patch = patch + own.image * plan.patch.image_pitch +
                             own.row * plan.rows.in_step * plan.patch.row_pitch + own.column;
      if constexpr (kTaps > 0)
        multiply_known<kTaps, kStride>(sums, plan, own_patch, own_filters, plan.channels);
      else
        multiply(sums, plan, block, own_patch, own_filters, plan.channels);
    }
    const TiledThread own = tiled_thread<TM, TN, kThreads>(plan);
    if (kLayout == kNhwc && plan.out_channels % V == 0)
      store<V>(y, sums, plan, block, own, int(problem.n), bias, true);
    else
      store<1>(y, sums, plan, block, own, int(problem.n), bias, true);
  }
}

}  // namespace pyconv
