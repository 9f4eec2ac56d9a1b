// The matrix B of wgrad, gathered tile by tile from x into shared memory.
//
//   B[k, (r, s, c)] = x[n, h, w, c]       k = (n, p, q) a pixel of y
//
//   h = p*stride_h - pad_top + r*dilation_h, w alike       0 where there is no such pixel: that is the padding
//
// A line of the tile is a pixel of y, and its places are (r, s, c), c side by side in memory. A thread keeps its place,
// so its tap and channel are found once. It goes from pixel to pixel by the same distance, within a tile and from
// tile to tile: the launch takes that distance apart into images, rows and columns, and going on is three additions
// with their carries. No division in the loop.
#pragma once
#include "common/divisor.h"
#include "conv2d/implicit_gemm_taps.cuh"
#include "gemm/gemm_tensor_tile.h"

namespace pyconv {

// Same fields and order as in implicit_gemm_plan.py.
struct PatchAxis {
  int32_t in_extent;  // rows of x
  int32_t stride, pad, dilation;
  Divisor outputs;  // rows of y
};
struct Pixels {
  int32_t image, row, column;  // of y
};
struct PatchPlan {
  GemmProblem gemm;  // A is dy and C dw, or the partial sums of its splits
  PatchAxis rows, columns;
  Pixels step;  // as many pixels as lines of a tile are copied at once, taken apart: each below its extent
  int32_t images, filter_columns;       // n, s
  int32_t in_channels, group_channels;  // of x
  int32_t in_width;                     // elements of x that one access may take
};

template <class T, int BN, int THREADS>
struct PatchCopier {
  typedef TensorTile<T, kMnMajor, BN> Tile;
  template <int WIDTH>
  using Share = typename TileCopier<T, kMnMajor, BN, THREADS>::template Share<WIDTH>;

  struct Cursor {
    const T* in;       // the channel of the thread's place
    int down, across;  // from the pixel that tap (0, 0) reaches, padding taken off
    Pixels at;         // the next line
  };

  PYCONV_DEVICE Cursor start(const PatchPlan& plan, const GemmBlock& block, const T* x) {
    return start_as<Tile::kPiece>(plan, block, x);
  }

  // Starts the copies of the tile at the cursor and moves on to the next one.
  PYCONV_DEVICE void copy(const PatchPlan& plan, Cursor& at, T* tile) { copy_as<Tile::kPiece>(plan, at, tile); }

 private:
  PYCONV_DEVICE Pixels pixels(const PatchPlan& plan, int number) {
    Pixels at;
    at.image = quotient(quotient(number, plan.columns.outputs, at.column), plan.rows.outputs, at.row);
    return at;
  }

  template <int WIDTH>
  PYCONV_DEVICE Cursor start_as(const PatchPlan& plan, const GemmBlock& block, const T* x) {
    if constexpr (WIDTH > 1)
      if (plan.in_width < WIDTH) return start_as<WIDTH / 2>(plan, block, x);
    const int thread = int(threadIdx.x), line = Share<WIDTH>::line(thread);
    const int place = block.n0 + Share<WIDTH>::place(thread);
    const int tap = place / plan.group_channels, channel = place - tap * plan.group_channels;
    const int r = tap / plan.filter_columns, s = tap - r * plan.filter_columns;
    Cursor at;
    at.in = x + block.batch * plan.group_channels + channel;
    at.down = place < plan.gemm.gemm_n ? r * plan.rows.dilation - plan.rows.pad : kNowhere;
    at.across = s * plan.columns.dilation - plan.columns.pad;
    at.at = pixels(plan, block.k_begin + line);
    return at;
  }

  template <int WIDTH>
  PYCONV_DEVICE void copy_as(const PatchPlan& plan, Cursor& at, T* tile) {
    if constexpr (WIDTH > 1)
      if (plan.in_width < WIDTH) return copy_as<WIDTH / 2>(plan, at, tile);
    // Of narrow accesses there are many, and registers are few: no addresses kept for them.
    constexpr bool kIsNarrow = WIDTH < Tile::kPiece;
    const int thread = kIsNarrow ? recomputed(int(threadIdx.x)) : int(threadIdx.x);
    const int line = Share<WIDTH>::line(thread), place = Share<WIDTH>::place(thread);
    constexpr int kAccesses = Share<WIDTH>::kAccesses;
    PYCONV_UNROLL_BY(kIsNarrow ? 1 : kAccesses)
    for (int i = 0; i < kAccesses; ++i) {
      const int h = at.at.row * plan.rows.stride + at.down, w = at.at.column * plan.columns.stride + at.across;
      // Past the last image there are no pixels. A split that is not the last ends with a tile.
      const bool is_inside = at.at.image < plan.images && unsigned(h) < unsigned(plan.rows.in_extent) &&
                             unsigned(w) < unsigned(plan.columns.in_extent);
      const unsigned pixel = (unsigned(at.at.image) * unsigned(plan.rows.in_extent) + unsigned(h)) *
                                 unsigned(plan.columns.in_extent) +
                             unsigned(w);
      const T* const from = at.in + int64_t(pixel) * plan.in_channels;
      T* const to = &tile[Tile::at(line + i * Share<WIDTH>::kLinesAtOnce, place)];
      if constexpr (WIDTH * sizeof(T) >= 4)
        cp_async<WIDTH* int(sizeof(T))>(to, from, is_inside ? WIDTH * int(sizeof(T)) : 0);
      else
        *to = is_inside ? *from : T{};  // less than cp.async can copy
      go_on(plan, at);
    }
  }

  PYCONV_DEVICE void go_on(const PatchPlan& plan, Cursor& at) {
    at.at.column += plan.step.column;
    at.at.row += plan.step.row;
    at.at.image += plan.step.image;
    if (at.at.column >= plan.columns.outputs.divisor) at.at.column -= plan.columns.outputs.divisor, ++at.at.row;
    if (at.at.row >= plan.rows.outputs.divisor) at.at.row -= plan.rows.outputs.divisor, ++at.at.image;
  }
};

}  // namespace pyconv
