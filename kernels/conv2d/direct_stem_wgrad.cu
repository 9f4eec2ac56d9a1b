// Weight gradient of the first layer ("stem"): c <= 4 channels, so dw is small (64 x 147 for 7x7 of 3 channels)
// and its sum, over all pixels of all images, is very long.
//
//   dw[k,c,r,s] = sum over n,p,q of dy[n,k,p,q] * x[n,c,h,w]      h = p*stride_h - pad_top + r*dilation_h, w alike
//
// As in direct_tiled_wgrad.cu, dw is a matrix of filters k x entries (c,r,s), a block has the tiles of pixels of
// one split, and wgrad_sum.cu adds what the splits left in the workspace. But a tile there is some 256 entries
// wide, of which a small dw fills few. Here the tile of dw is a warp's, and several warps may share the pixels:
//
// Block:   8*TM filters x plan.entry_warps*4*TN entries; what it stages serves all of them.
// Warp:    8*TM filters x 4*TN entries (64 x 28), over every plan.pixel_warps-th row of the tile's pixels. Warps
//          with the same entries keep copies of their own, which are splits of their own to the sum.
// Lane:    TM filters x TN entries; 8 lanes along filters, 4 along entries.
//
// For each pixel a warp reads 8*TM words of dy (in float two accesses of 16 bytes a lane) and TN times four words
// of the patch: 2 + 7 accesses for 56 FMAs.
#include "conv2d/direct_tiled_wgrad.cu"

namespace pyconv {

// Decided by direct_stem_launch.py; same fields, same order.
struct StemWgradPlan {
  WgradPlan tiles;                   // entries: those of a block
  int32_t entry_warps, pixel_warps;  // warps along entries, and warps that share the pixels of a tile
};

template <class T, Layout kLayout, int TM, int TN, int kThreads>
__global__ void __launch_bounds__(kThreads, 2)
    direct_stem_wgrad(Conv2dProblem problem, StemWgradPlan stem, const T* __restrict__ x_data,
                      const T* __restrict__ dy_data, Accumulator<T>* partial) {
  using Sum = Accumulator<T>;
  constexpr int V = kVector16<T>, kRun = kVector16<Sum>, kFilterLanes = 8, kEntryLanes = 4;
  static_assert(kFilterLanes * kEntryLanes == kWarpSize && TM % kRun == 0, "");
  const WgradPlan& plan = stem.tiles;
  const Tensor<const T, kLayout> x(x_data, problem.c, problem.h, problem.w);
  const Tensor<const T, kLayout> dy(dy_data, problem.k, plan.rows.outputs, plan.columns.outputs);
  PYCONV_SHARED(WgradBlock, block);
  PYCONV_DYNAMIC_SHARED(Sum, staged_dy);
  Sum* patch = staged_dy + plan.dy_size;

  if (threadIdx.x == 0) block = wgrad_block(problem, plan);
  __syncthreads();
  const int warp = int(threadIdx.x) / kWarpSize, lane = int(threadIdx.x) % kWarpSize;
  const int pixel_warp = warp / stem.entry_warps;
  const bool is_idle = pixel_warp >= stem.pixel_warps;  // it helps to stage
  const int filter_lane = lane % kFilterLanes;
  const int first_entry = block.entry + (warp % stem.entry_warps * TN) * kEntryLanes + lane / kFilterLanes;
  int places[TN];
  PYCONV_UNROLL
  for (int j = 0; j < TN; ++j) {
    const int taps = int(problem.r * problem.s), entry = first_entry + j * kEntryLanes, tap = entry % taps;
    const int place = (entry / taps - block.channel) * plan.patch.channel_pitch +
                      tap / int(problem.s) * plan.rows.tap_step * plan.patch.row_pitch +
                      plan.patch.column(tap % int(problem.s) * plan.columns.tap_step);
    places[j] = entry < plan.group_entries ? place : 0;  // beyond the last entry: any place will do
  }

  int tile = block.tile;
  do {
    const bool is_first = tile == block.tile;
    const int end = block.end_tile - tile < plan.chain_tiles ? block.end_tile : tile + plan.chain_tiles;
    Sum sums[TM][TN] = {};
    for (; tile < end; ++tile) {
      const WgradTile at = wgrad_tile(problem, plan, tile);
      const PatchOrigin origin = {at.image, block.channel, at.row * int(problem.stride_h) - int(problem.pad_top),
                                  at.column * int(problem.stride_w) - int(problem.pad_left)};
      auto source_at = [&](int place) { return source_of(place, plan.patch, origin, x, int(problem.n)); };
      __syncthreads();  // nobody needs the tile before any more
      stage_by_pixels<kThreads>(patch, plan.patch, x, &x(at.image, block.channel, 0, 0), block.channels,
                                source_at);
      if (kLayout == kNhwc && plan.group_k % V == 0)
        stage_dy<kThreads, V>(staged_dy, plan, at, dy, block.filter, plan.group_k - block.filter);
      else
        stage_dy<kThreads, 1>(staged_dy, plan, at, dy, block.filter, plan.group_k - block.filter);
      __syncthreads();
      if (is_idle) continue;

      for (int line = pixel_warp; line < at.images * at.rows; line += stem.pixel_warps) {
        const int image = line / at.rows, row = line % at.rows;
        const Sum* filters = staged_dy + (image * plan.rows.tile + row) * plan.columns.tile * plan.dy_pitch;
        const Sum* pixel = patch + image * plan.patch.image_pitch + row * plan.rows.in_step * plan.patch.row_pitch;
        PYCONV_UNROLL_BY(2)
        for (int column = 0; column < at.columns; ++column) {
          Sum own_dy[TM], own_x[TN];
          PYCONV_UNROLL
          for (int i = 0; i < TM; i += kRun) {
            Sum run[kRun];
            load_run(run, filters + (i * kFilterLanes + filter_lane * kRun));
            PYCONV_UNROLL
            for (int v = 0; v < kRun; ++v) own_dy[i + v] = run[v];
          }
          PYCONV_UNROLL
          for (int j = 0; j < TN; ++j) own_x[j] = pixel[places[j]];
          add_outer_product(sums, own_dy, own_x);
          filters += plan.dy_pitch;
          pixel += 1;
        }
      }
    }
    if (is_idle) continue;

    const int64_t copy = int64_t(block.split) * stem.pixel_warps + pixel_warp;
    PYCONV_UNROLL
    for (int i = 0; i < TM; ++i) {
      const int filter = block.filter + i / kRun * kRun * kFilterLanes + filter_lane * kRun + i % kRun;
      if (filter >= plan.group_k) continue;
      Sum* at = partial + (copy * plan.group_k + filter) * plan.group_entries + first_entry;
      PYCONV_UNROLL
      for (int j = 0; j < TN; ++j) {
        if (first_entry + j * kEntryLanes >= plan.group_entries) break;
        at[j * kEntryLanes] = is_first ? sums[i][j] : at[j * kEntryLanes] + sums[i][j];
      }
    }
  } while (tile < block.end_tile);
}

}  // namespace pyconv
