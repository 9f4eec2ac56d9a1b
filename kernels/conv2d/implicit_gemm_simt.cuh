// The main loop of implicit GEMM on the ordinary arithmetic units, for float and double.
//
// Block:   BM x BN sums, WARPS_M x WARPS_N warps. Its tiles of A and B, 64 bytes of k each, are those of the tensor-core
//          GEMM (gemm/gemm_tensor_tile.h), filled by the same copiers, STAGES of them.
// Warp:    32 x 64 sums (or 32 x 32), 32 lanes as 4 x 8.
// Thread:  8 x 8 sums (or 8 x 4). Which rows and columns depends on how the operand lies in its tile:
//
//            kKMajor    a line is a row: every 4th (8th) one, so that the lanes of a warp read the same 16 bytes of
//                       4 (8) neighbouring lines, which the swizzle has put in different banks
//            kMnMajor   a line is a k: 16 bytes are V neighbouring rows, and neighbouring lanes have the next ones
//
//          Either way 16 bytes are V operands, so 8 x 8 sums take 4 loads of shared memory for 64 FMAs, and no operand
//          has to be transposed while it is copied.
//
//   copy     | 0 | 1 | 2 | 3 |            started, not waited for
//   compute          | 0 | 1 |            one barrier a tile: it ends the tile that is overwritten next
#pragma once
#include "gemm/gemm_tensor_tile.h"

namespace pyconv {

// Which rows of A, or columns of B, a thread has, and how it reads them. LANES: of a warp along this dimension.
template <class T, Major MAJOR, int MN, int LANES, int WARPS>
struct SimtSide {
  typedef TensorTile<T, MAJOR, MN> Tile;
  static constexpr int V = kVector16<T>, kOwn = MN / (LANES * WARPS), kOfWarp = MN / WARPS;
  static_assert(kOwn % V == 0 && kOfWarp % 8 == 0,
                "a thread has whole vectors, a warp whole turns of the swizzle");

  // The thread's i-th row (column) within the block. kMnMajor: V of them are neighbours.
  PYCONV_DEVICE constexpr int own(int warp, int lane, int i) {
    return warp * kOfWarp + (MAJOR == kKMajor ? i * LANES + lane : i / V * LANES * V + lane * V + i % V);
  }

  // kKMajor: of the i-th row, V operands along k. kMnMajor: at k, V operands from the i-th row on.
  PYCONV_DEVICE Vector<T, V> load(const T* tile, int warp, int lane, int i, int k) {
    if (MAJOR == kKMajor)
      return load_vector<V>(tile + Tile::first(warp * kOfWarp) + Tile::at(lane, 0, i * LANES, k));
    return load_vector<V>(&tile[Tile::at(k, own(warp, lane, i))]);
  }
};

template <class T, Major A_MAJOR, Major B_MAJOR, int BM, int BN, int WARPS_M, int WARPS_N, int STAGES>
struct SimtLoop {
  typedef SimtSide<T, A_MAJOR, BM, 4, WARPS_M> SideA;
  typedef SimtSide<T, B_MAJOR, BN, 8, WARPS_N> SideB;
  typedef typename SideA::Tile TileA;
  typedef typename SideB::Tile TileB;
  static constexpr int kThreads = WARPS_M * WARPS_N * kWarpSize;
  static constexpr int V = kVector16<T>, TM = SideA::kOwn, TN = SideB::kOwn;
  static constexpr int kColumns = TN < 4 ? TN : 4;                    // at a time, where A is read along k
  static constexpr int kStage = TileA::kElements + TileB::kElements;  // elements
  typedef T ThreadSums[TM][TN];

  // A thread's place: warps as WARPS_M x WARPS_N, lanes as 4 x 8.
  PYCONV_DEVICE int warp_m(int thread) { return thread / kWarpSize / WARPS_N; }
  PYCONV_DEVICE int warp_n(int thread) { return thread / kWarpSize % WARPS_N; }
  PYCONV_DEVICE int lane_m(int thread) { return thread % kWarpSize / 8; }
  PYCONV_DEVICE int lane_n(int thread) { return thread % 8; }
  PYCONV_DEVICE int row(int thread, int i) { return SideA::own(warp_m(thread), lane_m(thread), i); }
  PYCONV_DEVICE int column(int thread, int j) { return SideB::own(warp_n(thread), lane_n(thread), j); }

  // As TensorLoop::run (gemm/gemm_tensor_loop.h).
  template <class CopyA, class CopyB, class Store>
  PYCONV_DEVICE void run(T* stages, int tiles, int chain, const CopyA& copy_a, const CopyB& copy_b,
                         const Store& store) {
    int copied = 0;
    const auto copy_tile = [&](int stage) {
      if (copied < tiles) {
        copy_a(&stages[stage * kStage]);
        copy_b(&stages[stage * kStage + TileA::kElements]);
      }
      ++copied;
      cp_async_commit();  // an empty group too: the wait below counts groups
    };
    PYCONV_UNROLL
    for (int i = 0; i < STAGES - 1; ++i) copy_tile(i);

    bool is_first = true;
    int tile = 0, stage = 0;
    do {
      ThreadSums sums = {};
      for (const int end = tiles - tile < chain ? tiles : tile + chain; tile < end; ++tile) {
        cp_async_wait<STAGES - 2>();  // this thread's copies of the tile have arrived,
        __syncthreads();              // those of the others too, and nobody reads the tile before it any more:
        copy_tile(stage == 0 ? STAGES - 1 : stage - 1);  // into its place
        const T* const at = &stages[stage * kStage];
        PYCONV_UNROLL
        for (int k = 0; k < TileA::kBk; k += V) multiply(sums, at, at + TileA::kElements, k);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
      }
      store(sums, is_first, tile >= tiles);
      is_first = false;
    } while (tile < tiles);
  }

 private:
  // V terms, in the order of k.
  PYCONV_DEVICE void multiply(ThreadSums& sums, const T* tile_a, const T* tile_b, int k0) {
    const int thread = recomputed(int(threadIdx.x)), wm = warp_m(thread), wn = warp_n(thread), lm = lane_m(thread),
              ln = lane_n(thread);
    if constexpr (A_MAJOR == kMnMajor) {
      static_assert(B_MAJOR == kMnMajor || A_MAJOR == kKMajor, "no pass reads A across k and B along it");
      PYCONV_UNROLL
      for (int k = k0; k < k0 + V; ++k) {
        Vector<T, V> a[TM / V], b[TN / V];
        PYCONV_UNROLL
        for (int i = 0; i < TM; i += V) a[i / V] = SideA::load(tile_a, wm, lm, i, k);
        PYCONV_UNROLL
        for (int j = 0; j < TN; j += V) b[j / V] = SideB::load(tile_b, wn, ln, j, k);
        PYCONV_UNROLL
        for (int i = 0; i < TM; ++i) {
          PYCONV_UNROLL
          for (int j = 0; j < TN; ++j)
            sums[i][j] = fused(a[i / V].element[i % V], b[j / V].element[j % V], sums[i][j]);
        }
      }
    } else {
      // Half the columns at a time: the operands of all would take 16 registers more.
      PYCONV_UNROLL
      for (int j0 = 0; j0 < TN; j0 += kColumns) {
        Vector<T, V> b[kColumns];  // kKMajor: of each column, V of k; kMnMajor: of each k, V columns
        PYCONV_UNROLL
        for (int i = 0; i < kColumns; ++i)
          b[i] = B_MAJOR == kKMajor
                     ? SideB::load(tile_b, wn, ln, j0 + i, k0)
                     : SideB::load(tile_b, wn, ln, j0 + i % (kColumns / V) * V, k0 + i / (kColumns / V));
        PYCONV_UNROLL
        for (int i = 0; i < TM; ++i) {
          const Vector<T, V> a = SideA::load(tile_a, wm, lm, i, k0);
          PYCONV_UNROLL
          for (int k = 0; k < V; ++k) {
            PYCONV_UNROLL
            for (int j = 0; j < kColumns; ++j) {
              const T operand =
                  B_MAJOR == kKMajor ? b[j].element[k] : b[k * (kColumns / V) + j / V].element[j % V];
              sums[i][j0 + j] = fused(a.element[k], operand, sums[i][j0 + j]);
            }
          }
        }
      }
    }
  }
};

// Stores a thread's sums, the first of which is C[m0, n0] of the block's; as WarpStore (gemm/gemm_tensor_store.h).
// Columns that are neighbours go 16 bytes at a time. Others go one by one, 8 lanes side by side: whole sectors too.
template <class Loop, Major B_MAJOR, Activation ACTIVATION, class T, class Lines>
PYCONV_DEVICE void store_sums(const GemmProblem& problem, const typename Loop::ThreadSums& sums, int m0, int n0,
                              const T* bias, bool add, bool is_last, T* c, const Lines& lines) {
  constexpr int kCount = B_MAJOR == kMnMajor ? Loop::V : 1;
  const int thread = recomputed(int(threadIdx.x));
  const bool is_wide = has_vectors<kCount>(problem.c) && problem.split_stride % kCount == 0;
  PYCONV_UNROLL
  for (int i = 0; i < Loop::TM; ++i) {
    const int m = m0 + Loop::row(thread, i);
    if (m >= problem.gemm_m) continue;
    T* const line = c + lines(m);
    PYCONV_UNROLL
    for (int j = 0; j < Loop::TN; j += kCount) {
      const int n = n0 + Loop::column(thread, j);
      if (kCount > 1 && is_wide && n + kCount <= problem.gemm_n) {
        Vector<T, kCount> results;
        if (add) results = load_vector<kCount>(line + n);
        PYCONV_UNROLL
        for (int v = 0; v < kCount; ++v)
          store_sum<ACTIVATION>(problem, bias, m, n + v, sums[i][j + v], add, &results.element[v], is_last);
        store_vector<kCount>(line + n, results);
        continue;
      }
      PYCONV_UNROLL
      for (int v = 0; v < kCount; ++v)
        if (n + v < problem.gemm_n)
          store_sum<ACTIVATION>(problem, bias, m, n + v, sums[i][j + v], add, line + n + v, is_last);
    }
    keep_order();
  }
}

}  // namespace pyconv
