// What a block of direct_tiled.cu computes, and how it stages its filters.
#pragma once
#include "conv2d/gather.cuh"
#include "conv2d/patch.cuh"

namespace pyconv {

// What direct_tiled_launch.py decides for a problem; same fields, same order. As a kernel's argument it lies in
// constant memory and takes no registers.
struct TiledAxis {
  int32_t in_extent, out_extent;  // of the tensors
  int32_t classes;                // of output pixels: 1, in dgrad the stride's residues
  int32_t period;                 // filter rows between the taps of a class
  int32_t in_step, tap_step;  // places of the patch between neighbouring outputs, and between neighbouring taps
  int32_t tile, tiles;        // outputs of a tile, and tiles that cover a class
};
struct TiledPlan {
  TiledAxis rows, columns;
  Patch patch;
  int32_t pass;                       // Pass
  int32_t in_channels, out_channels;  // of a group
  int32_t image_tiles;                // that cover n; patch.images are one
  int32_t filters, filter_blocks;     // out channels of a block, and blocks that cover a group
  int32_t channels;                   // in channels of a chunk
  int32_t chain;                      // in channels whose products are added in one chain
  int32_t filter_pitch;               // of the staged filters, in elements
  int32_t filters_size, patch_size;   // in elements
  int64_t w_in_stride, w_out_stride;  // of w, between in channels and between out channels
};

// What one block computes. It lies in shared memory: the registers are for sums.
struct TiledBlock {
  AxisClass rows, columns;
  int group, out_channel, image, row, column;  // the first of its tile; row and column count within the class
  PatchOrigin patch;
};

// Of all blocks, the one numbered `rest`.
PYCONV_DEVICE TiledBlock tiled_block(const Conv2dProblem& a, const TiledPlan& plan, unsigned rest) {
  auto next = [&](int count) {
    const int index = int(rest % unsigned(count));
    rest /= unsigned(count);
    return index;
  };
  TiledBlock block;
  block.out_channel = next(plan.filter_blocks) * plan.filters;  // first: blocks that share a patch are neighbours
  block.column = next(plan.columns.tiles) * plan.columns.tile;
  block.row = next(plan.rows.tiles) * plan.rows.tile;
  block.image = next(plan.image_tiles) * plan.patch.images;
  const int column_class = next(plan.columns.classes), row_class = next(plan.rows.classes);
  block.group = int(rest);
  const int r = int(a.r), s = int(a.s), pad_top = int(a.pad_top), pad_left = int(a.pad_left);
  if (plan.pass == kFprop) {
    block.rows = fprop_axis(plan.rows.out_extent, r, pad_top);
    block.columns = fprop_axis(plan.columns.out_extent, s, pad_left);
  } else {
    block.rows = dgrad_axis(plan.rows.out_extent, r, pad_top, int(a.stride_h), int(a.dilation_h), plan.rows.period,
                            row_class);
    block.columns = dgrad_axis(plan.columns.out_extent, s, pad_left, int(a.stride_w), int(a.dilation_w),
                               plan.columns.period, column_class);
  }
  block.patch = {block.image, block.group * plan.in_channels,
                 block.rows.in_origin + block.row * plan.rows.in_step * plan.patch.row_unit,
                 block.columns.in_origin + block.column * plan.columns.in_step * plan.patch.column_unit};
  return block;
}

// Eight neighbouring lanes take neighbouring out channels; the four rows of a warp take neighbouring elements of w
// where in channels (nhwc) or taps (nchw) lie side by side. The pitch, 8 more than a multiple of 32 words, keeps
// the words they write in different banks.
template <int kThreads, Layout kLayout, class T, class Sum>
PYCONV_DEVICE void stage_filters(Sum* filters, const Conv2dProblem& problem, const TiledPlan& plan,
                                 const TiledBlock& block, const T* w, int first_in, int channels) {
  constexpr int kLanes = 8;
  const int column_taps = block.columns.taps, taps = block.rows.taps * column_taps;
  const int out_channels = plan.out_channels - block.out_channel;  // from the first one on
  const int64_t first = block.group * problem.group_k() * problem.group_c() * problem.r * problem.s +
                        block.out_channel * plan.w_out_stride + first_in * plan.w_in_stride;
  const int s_stride = kLayout == kNhwc ? int(problem.group_c()) : 1, r_stride = int(problem.s) * s_stride;

  for (int i = int(threadIdx.x) / kLanes; i < channels * taps; i += kThreads / kLanes) {
    const int channel = kLayout == kNhwc ? i % channels : i / taps;
    const int tap = kLayout == kNhwc ? i / channels : i % taps;
    const int r = block.rows.tap_origin + tap / column_taps * block.rows.tap_step;
    const int s = block.columns.tap_origin + tap % column_taps * block.columns.tap_step;
    const T* from = w + first + channel * plan.w_in_stride + r * r_stride + s * s_stride;
    Sum* to = filters + (channel * taps + tap) * plan.filter_pitch;
    for (int out = int(threadIdx.x) % kLanes; out < plan.filters; out += kLanes)
      to[out] = out < out_channels ? widen(from[out * plan.w_out_stride]) : Sum(0);
  }
}

}  // namespace pyconv
