// What the Winograd kernels know of a problem, and where tiles, U, V and P lie (winograd.cu says what they are).
#pragma once
#include "common/numbers.h"

namespace pyconv {

// Channels are those of one group. Python's twin is in winograd_launch.py: same fields, same order.
struct WinogradPlan {
  int32_t groups, in_channels, out_channels;
  int32_t in_rows, in_columns, out_rows, out_columns;
  int32_t pad_top, pad_left;
  int32_t tile_rows, tile_columns;    // of an image
  int32_t first_tile, tiles;          // of the chunk
  int32_t u_pitch, v_pitch, p_pitch;  // elements from line to line
};

// The image of a tile, and the place of its first output.
struct WinogradTile {
  int image, row, column;
};

template <int M>
PYCONV_DEVICE WinogradTile winograd_tile(const WinogradPlan& plan, int tile) {
  const int number = plan.first_tile + tile, row = number / plan.tile_columns;
  return {row / plan.tile_rows, row % plan.tile_rows * M, number % plan.tile_columns * M};
}

// Where the matrices of place 0 have line `line` of a channel's group; those of the next place are `lines` lines on.
PYCONV_DEVICE int64_t winograd_line(int group, int places, int lines, int line, int pitch) {
  return (int64_t(group) * places * lines + line) * pitch;
}

}  // namespace pyconv
