// The asynchronous copies of gemm_pipelined.cu: tile after tile of one operand, from global to shared memory.
//
//   tile[k][across] = A[m0 + across, k0 + k] or B[k0 + k, n0 + across]        zeros outside the matrix
//
// Both majors end in the same form, lines of shared memory that run along m or n, so that one inner loop serves
// all.
//
//   kMnMajor   lines run the same way in memory: a thread copies COPY elements at a time, 16 bytes if every line
//   is
//              aligned to that and one element if not. A warp copies whole lines.
//   kKMajor    lines run the other way, so the copy transposes, element by element: 8 lanes along k (32 bytes,
//   what
//              a memory transaction moves) and 4 lines. 4 times the copies, but one more instruction for 64 FMAs.
//
// cp.async makes both cheap: no element passes a register, and the wait comes two tiles later.
#pragma once
#include "common/cp_async.h"
#include "gemm/operands.h"

namespace pyconv {

// Copies of one thread: begin(copies, ...) at the first tile, then start(copies, ...) for each tile in turn.
// ACROSS: elements of a tile along m or n, BK along k.
template <class T, Major MAJOR, int COPY, int ACROSS, int BK, int THREADS>
struct TileCopies;

// ---- kMnMajor ------------------------------------------------------------------------------------------

template <class T, int COPY, int ACROSS, int BK, int THREADS>
struct TileCopies<T, kMnMajor, COPY, ACROSS, BK, THREADS> {
  static constexpr int kPlaces = ACROSS / COPY;     // threads along a line
  static constexpr int kLines = THREADS / kPlaces;  // lines at a time
  static constexpr int kPitch = ACROSS;             // elements from one k of the tile to the next
  static_assert(BK % kLines == 0, "every thread makes the same number of copies");

  const T* from;  // of the next piece
  int k, across;  // of the thread's first piece in a tile
  int valid_bytes;
};

// `matrix` is that of the batch, `across0` the m0 or n0 of the block, `across_end` gemm_m or gemm_n.
template <class T, int COPY, int ACROSS, int BK, int THREADS>
PYCONV_DEVICE void begin(TileCopies<T, kMnMajor, COPY, ACROSS, BK, THREADS>& copies, const T* matrix,
                         const MatrixLayout& layout, int across0, int across_end, int k_begin) {
  copies.k = threadIdx.x / copies.kPlaces;
  copies.across = threadIdx.x % copies.kPlaces * COPY;
  const int left = across_end - across0 - copies.across;
  copies.valid_bytes = (left < 0 ? 0 : left < COPY ? left : COPY) * int(sizeof(T));
  copies.from = matrix + line_offset(layout, k_begin + copies.k) + place_offset(layout, across0 + copies.across);
}

template <class T, int COPY, int ACROSS, int BK, int THREADS>
PYCONV_DEVICE void start(TileCopies<T, kMnMajor, COPY, ACROSS, BK, THREADS>& copies, const MatrixLayout& layout,
                         T* tile, int k0, int k_end) {
  T* to = tile + copies.k * copies.kPitch + copies.across;
  PYCONV_UNROLL
  for (int i = 0; i < BK; i += copies.kLines) {
    cp_async<COPY * sizeof(T)>(to + i * copies.kPitch, copies.from,
                               k0 + copies.k + i < k_end ? copies.valid_bytes : 0);
    copies.from += copies.kLines * layout.line_stride;
  }
}

// ---- kKMajor -------------------------------------------------------------------------------------------

template <class T, int COPY, int ACROSS, int BK, int THREADS>
struct TileCopies<T, kKMajor, COPY, ACROSS, BK, THREADS> {
  static constexpr int kLanes = 8;                 // lanes along k: a tile is BK / kLanes parts
  static constexpr int kLines = THREADS / kLanes;  // lines at a time
  // A warp writes down columns. 16 bytes of padding put its 8 k x 4 lines into 32 different banks: in floats,
  // (k * (128 + 4) + line) modulo 32.
  static constexpr int kPitch = ACROSS + 16 / int(sizeof(T));
  static_assert(COPY == 1, "elements that are neighbours in memory are not in the tile");
  static_assert(BK % kLanes == 0 && ACROSS % kLines == 0, "every thread makes the same number of copies");

  const T* from;  // of the next part, on the thread's first line
  int place;      // of that, within its segment
  int k, across;  // of the thread's first element in a tile
  int lines;      // from its first line to the end of the matrix
};

template <class T, int ACROSS, int BK, int THREADS>
PYCONV_DEVICE void begin(TileCopies<T, kKMajor, 1, ACROSS, BK, THREADS>& copies, const T* matrix,
                         const MatrixLayout& layout, int across0, int across_end, int k_begin) {
  copies.k = threadIdx.x % copies.kLanes;
  copies.across = threadIdx.x / copies.kLanes;
  copies.lines = across_end - across0 - copies.across;
  copies.place = (k_begin + copies.k) % layout.segment;
  copies.from = matrix + line_offset(layout, across0 + copies.across) + place_offset(layout, k_begin + copies.k);
}

template <class T, int ACROSS, int BK, int THREADS>
PYCONV_DEVICE void start(TileCopies<T, kKMajor, 1, ACROSS, BK, THREADS>& copies, const MatrixLayout& layout,
                         T* tile, int k0, int k_end) {
  PYCONV_UNROLL
  for (int part = 0; part < BK; part += copies.kLanes) {
    T* to = tile + (copies.k + part) * copies.kPitch + copies.across;
    const T* from = copies.from;
    const int valid_lines = k0 + copies.k + part < k_end ? copies.lines : 0;
    PYCONV_UNROLL
    for (int i = 0; i < ACROSS; i += copies.kLines) {
      cp_async<sizeof(T)>(to + i, from, i < valid_lines ? int(sizeof(T)) : 0);
      from += copies.kLines * layout.line_stride;
    }
    copies.place += copies.kLanes, copies.from += copies.kLanes;
    while (copies.place >= layout.segment) {
      copies.place -= layout.segment;
      copies.from += layout.segment_stride - layout.segment;
    }
  }
}

}  // namespace pyconv
