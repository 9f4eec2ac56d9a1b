// The matrix A of fprop and dgrad, gathered tile by tile from `in` (x or dy) into shared memory.
//
//   A[m, k] = in[n, row, column, channel]      m = (n, i, j) an output pixel      k = (tap row, tap column, channel)
//
//   row    = i * in_step + in_origin + tap row    * tap_step          0 where there is no such row
//   column = j * in_step + in_origin + tap column * tap_step          or column: that is the padding
//
// The tile is that of the tensor-core GEMM (gemm_tensor_tile.h): BM lines of 64 bytes of k, 4 pieces of 16 bytes
// each. A thread always has the same piece, of BM * 4 / THREADS lines. What belongs to a line is found once: the
// pixel that tap (0, 0) reaches, its row and its column. What belongs to a tap, the distance from there, is the same
// for all lines. So a copy costs two additions and two comparisons for the edges, one multiplication for the address
// (64 bits wide), and the copy itself; no division, and no table.
//
// Where a group's channels are no multiple of a piece, neither is a pixel: pieces are then copied in parts of in_width
// elements, each with the tap it belongs to.
#pragma once
#include "conv2d/implicit_gemm_plan.cuh"
#include "conv2d/implicit_gemm_taps.cuh"
#include "gemm/gemm_tensor_tile.h"

namespace pyconv {

template <class T, Pass PASS, int BM, int THREADS>
struct PixelCopier {
  typedef TensorTile<T, kKMajor, BM> Tile;
  static constexpr int kLinesAtOnce = THREADS / Tile::kPieces;
  static constexpr int kLines = BM / kLinesAtOnce;  // of a thread
  static_assert(BM % kLinesAtOnce == 0, "every thread copies equally many lines");

  struct Cursor {
    const T* in;                      // the group's first channel
    unsigned pixel[kLines];           // that tap (0, 0) reaches; may be outside, and then wraps
    int row[kLines], column[kLines];  // of it
    TapWalk walk;                     // where the thread's piece of the next tile begins
  };

  PYCONV_DEVICE Cursor start(const GatherPlan& plan, const GatherBlock<PASS>& block, const T* in) {
    const GatherClass &rows = block.at.of_rows(plan), &columns = block.at.of_columns(plan);
    const int thread = int(threadIdx.x);
    Cursor at;
    at.in = in + block.gemm.batch * plan.group_channels;
    PYCONV_UNROLL
    for (int i = 0; i < kLines; ++i) {
      const int m = block.gemm.m0 + thread / Tile::kPieces + i * kLinesAtOnce;
      const GatherPixel pixel = gather_pixel(rows, columns, m);
      const int row = rows.axis.in_origin + pixel.row * plan.rows.in_step;
      const int column = columns.axis.in_origin + pixel.column * plan.columns.in_step;
      at.pixel[i] = (unsigned(pixel.image) * unsigned(plan.rows.in_extent) + unsigned(row)) *
                        unsigned(plan.columns.in_extent) +
                    unsigned(column);
      at.row[i] = m < block.gemm_m ? row : kNowhere;
      at.column[i] = column;
    }
    at.walk = {0, 0, 0};
    if (block.gemm_k > 0)
      advance(at.walk, thread % Tile::kPieces * Tile::kPiece, plan.group_channels, columns.axis.taps);
    return at;
  }

  // Starts the copies of the tile at the cursor and moves on to the next one.
  PYCONV_DEVICE void copy(const GatherPlan& plan, const GatherBlock<PASS>& block, Cursor& at, T* tile) {
    const int row_taps = block.at.of_rows(plan).axis.taps, column_taps = block.at.of_columns(plan).axis.taps;
    if (plan.in_width == Tile::kPiece)
      copy_part<Tile::kPiece>(plan, at, at.walk, row_taps, 0, tile);
    else
      copy_parts<Tile::kPiece / 2>(plan, at, row_taps, column_taps, tile);
    advance(at.walk, Tile::kBk, plan.group_channels, column_taps);
  }

 private:
  // WIDTH elements from `first` of the thread's piece on, of all its lines.
  template <int WIDTH>
  PYCONV_DEVICE void copy_part(const GatherPlan& plan, const Cursor& at, const TapWalk& walk, int row_taps,
                               int first, T* tile) {
    // Narrow parts are many, and registers are few: no addresses kept for them.
    const int thread = WIDTH < Tile::kPiece ? recomputed(int(threadIdx.x)) : int(threadIdx.x);
    const int line = thread / Tile::kPieces;
    const int place = thread % Tile::kPieces * Tile::kPiece + first;
    const int down = walk.row < row_taps ? walk.row * plan.rows.tap_step : kNowhere;
    const int across = walk.column * plan.columns.tap_step;
    const unsigned distance = unsigned(down) * unsigned(plan.columns.in_extent) + unsigned(across);
    const T* const channel = at.in + walk.channel;
    PYCONV_UNROLL
    for (int i = 0; i < kLines; ++i) {
      const bool is_inside = unsigned(at.row[i] + down) < unsigned(plan.rows.in_extent) &&
                             unsigned(at.column[i] + across) < unsigned(plan.columns.in_extent);
      const T* const from = channel + int64_t(at.pixel[i] + distance) * plan.in_channels;
      T* const to = &tile[Tile::at(line + i * kLinesAtOnce, place)];
      if constexpr (WIDTH * sizeof(T) >= 4)
        cp_async<WIDTH* int(sizeof(T))>(to, from, is_inside ? WIDTH * int(sizeof(T)) : 0);
      else
        *to = is_inside ? *from : T{};  // less than cp.async can copy
    }
  }

  template <int WIDTH>
  PYCONV_DEVICE void copy_parts(const GatherPlan& plan, const Cursor& at, int row_taps, int column_taps, T* tile) {
    if constexpr (WIDTH >= 1) {
      if (plan.in_width < WIDTH) return copy_parts<WIDTH / 2>(plan, at, row_taps, column_taps, tile);
      TapWalk walk = at.walk;
      _Pragma("unroll 1") for (int first = 0; first < Tile::kPiece; first += WIDTH) {
        copy_part<WIDTH>(plan, at, walk, row_taps, first, tile);
        advance(walk, WIDTH, plan.group_channels, column_taps);
      }
    }
  }
};

}  // namespace pyconv
