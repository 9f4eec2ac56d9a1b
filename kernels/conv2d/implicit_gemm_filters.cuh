// The matrix B of dgrad, copied tile by tile from w as it lies in memory.
//
//   B[k, c] = w[filter, r, s, c]       k = (tap row, tap column, filter)          filters and channels of a group
//
//   r = tap_origin + tap row * tap_step       those filter rows that reach the class (gather.cuh); s alike
//
// A line of the tile is one (tap, filter), and its places are channels, side by side in memory: fprop reads the same
// tensor along k, dgrad across it, and ldmatrix transposes (gemm_tensor_tile.h). A thread keeps its channels and goes
// from line to line, by the same distance within a tile and from tile to tile.
#pragma once
#include "conv2d/implicit_gemm_plan.cuh"
#include "conv2d/implicit_gemm_taps.cuh"
#include "gemm/gemm_tensor_tile.h"

namespace pyconv {

template <class T, int BN, int THREADS>
struct FilterCopier {
  typedef TensorTile<T, kMnMajor, BN> Tile;
  template <int WIDTH>
  using Share = typename TileCopier<T, kMnMajor, BN, THREADS>::template Share<WIDTH>;

  struct Cursor {
    const T* from;  // the group's first filter, at the thread's first channel
    int valid;      // channels from there on that exist, WIDTH at most
    TapWalk walk;   // at the thread's first line of the next tile; walk.channel is a filter
  };

  PYCONV_DEVICE Cursor start(const GatherPlan& plan, const GatherBlock<kDgrad>& block, const T* w) {
    return start_as<Tile::kPiece>(plan, block, w);
  }

  // Starts the copies of the tile at the cursor and moves on to the next one.
  PYCONV_DEVICE void copy(const GatherPlan& plan, const GatherBlock<kDgrad>& block, Cursor& at, T* tile) {
    copy_as<Tile::kPiece>(plan, block, at, tile);
  }

 private:
  template <int WIDTH>
  PYCONV_DEVICE Cursor start_as(const GatherPlan& plan, const GatherBlock<kDgrad>& block, const T* w) {
    if constexpr (WIDTH > 1)
      if (!has_vectors<WIDTH>(plan.gemm.b)) return start_as<WIDTH / 2>(plan, block, w);
    const int thread = int(threadIdx.x), channel = block.gemm.n0 + Share<WIDTH>::place(thread);
    const int left = plan.gemm.gemm_n - channel;
    Cursor at{w + matrix_offset(plan.gemm.b, block.gemm.batch) + channel,
              left < 0       ? 0
              : left < WIDTH ? left
                             : WIDTH,
              {0, 0, 0}};
    const int column_taps = block.at.of_columns(plan).axis.taps;
    if (block.gemm_k > 0) advance(at.walk, Share<WIDTH>::line(thread), plan.group_channels, column_taps);
    return at;
  }

  template <int WIDTH>
  PYCONV_DEVICE void copy_as(const GatherPlan& plan, const GatherBlock<kDgrad>& block, Cursor& at, T* tile) {
    if constexpr (WIDTH > 1)
      if (!has_vectors<WIDTH>(plan.gemm.b)) return copy_as<WIDTH / 2>(plan, block, at, tile);
    const AxisClass &rows = block.at.of_rows(plan).axis, &columns = block.at.of_columns(plan).axis;
    // Of narrow accesses there are many, and registers are few: no addresses kept for them.
    constexpr bool kIsNarrow = WIDTH < Tile::kPiece;
    const int thread = kIsNarrow ? recomputed(int(threadIdx.x)) : int(threadIdx.x);
    const int line = Share<WIDTH>::line(thread), place = Share<WIDTH>::place(thread);
    constexpr int kAccesses = Share<WIDTH>::kAccesses;
    PYCONV_UNROLL_BY(kIsNarrow ? 1 : kAccesses)
    for (int i = 0; i < kAccesses; ++i) {
      const int r = rows.tap_origin + at.walk.row * rows.tap_step;
      const int s = columns.tap_origin + at.walk.column * columns.tap_step;
      const int tap = (at.walk.channel * plan.filter_rows + r) * plan.filter_columns + s;
      const T* const from = at.from + tap * plan.gemm.b.line_stride;
      const int valid = at.walk.row < rows.taps ? at.valid : 0;
      T* const to = &tile[Tile::at(line + i * Share<WIDTH>::kLinesAtOnce, place)];
      if constexpr (WIDTH * sizeof(T) >= 4)
        cp_async<WIDTH* int(sizeof(T))>(to, from, valid * int(sizeof(T)));
      else
        *to = valid > 0 ? *from : T{};  // less than cp.async can copy
      advance(at.walk, Share<WIDTH>::kLinesAtOnce, plan.group_channels, columns.taps);
    }
  }
};

}  // namespace pyconv
