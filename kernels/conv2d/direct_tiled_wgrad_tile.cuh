// What a block of direct_tiled_wgrad.cu computes: which part of dw, over which tiles of pixels.
#pragma once
#include "conv2d/patch.cuh"

namespace pyconv {

// Decided by direct_tiled_wgrad_launch.py; same fields, same order.
struct WgradAxis {
  int32_t outputs;            // P or Q
  int32_t in_step, tap_step;  // places of the patch between neighbouring outputs, and between neighbouring taps
  int32_t tile, tiles;        // outputs of a tile, and tiles that cover them
};
struct WgradPlan {
  WgradAxis rows, columns;
  Patch patch;
  int32_t group_c, group_k, group_entries;  // of a group; entries are c*r*s
  int32_t image_tiles;                      // that cover n; patch.images are one
  int32_t filters, filter_blocks;           // of a block, and blocks that cover a group
  int32_t entries, entry_blocks;            // the same along c,r,s
  int32_t channels;                         // of the patch
  int32_t splits, split_tiles;              // and tiles of pixels of each
  int32_t chain_tiles;                      // tiles whose products are added in one chain
  int32_t dy_pitch;                         // between pixels, in elements
  int32_t dy_size, patch_size;              // in elements
};

// What one block computes. It lies in shared memory: the registers are for sums.
struct WgradBlock {
  int group, filter, entry;  // the first of each; filters and entries count within the group
  int channel, channels;     // of the patch, within the group
  int tile, end_tile;
  int split;
};

PYCONV_DEVICE WgradBlock wgrad_block(const Conv2dProblem& a, const WgradPlan& plan) {
  unsigned rest = blockIdx.x;
  auto next = [&](int count) {
    const int index = int(rest % unsigned(count));
    rest /= unsigned(count);
    return index;
  };
  WgradBlock block;
  block.filter = next(plan.filter_blocks) * plan.filters;  // first: neighbours read the same pixels
  block.entry = next(plan.entry_blocks) * plan.entries;
  block.group = next(int(a.groups));
  block.split = int(rest);
  const int taps = int(a.r * a.s), tiles = plan.image_tiles * plan.rows.tiles * plan.columns.tiles;
  block.channel = block.entry / taps;
  const int channels = plan.group_c - block.channel;
  block.channels = channels < plan.channels ? channels : plan.channels;
  block.tile = block.split * plan.split_tiles;
  block.end_tile = block.tile + plan.split_tiles < tiles ? block.tile + plan.split_tiles : tiles;
  return block;
}

// A tile of pixels: where it begins, and how much of it lies inside y.
struct WgradTile {
  int image, row, column;
  int images, rows, columns;
};

PYCONV_DEVICE WgradTile wgrad_tile(const Conv2dProblem& a, const WgradPlan& plan, int tile) {
  WgradTile at;
  at.column = tile % plan.columns.tiles * plan.columns.tile;
  at.row = tile / plan.columns.tiles % plan.rows.tiles * plan.rows.tile;
  at.image = tile / plan.columns.tiles / plan.rows.tiles * plan.patch.images;
  const int images = int(a.n) - at.image, rows = plan.rows.outputs - at.row;
  const int columns = plan.columns.outputs - at.column;
  at.images = images < plan.patch.images ? images : plan.patch.images;
  at.rows = rows < plan.rows.tile ? rows : plan.rows.tile;
  at.columns = columns < plan.columns.tile ? columns : plan.columns.tile;
  return at;
}

}  // namespace pyconv
