// The main loop of the products on tensor cores: tiles through a ring of stages, fragments, mma.sync.
//
// How a tile is filled, and where its sums go, is the caller's: a matrix is copied from memory as it is
// (gemm_tensor.cu), a convolution gathers pixels (conv2d/implicit_gemm_tensor.cu).
//
//   tile t:   start copying t+2 | load step 1 | multiply step 0 | barrier | load step 0 of t+1 | multiply step 1
//
// Block:   BM x BN sums. Its tiles of A and B, 64 bytes of k each, pass through STAGES places in shared memory,
//          which cp.async fills ahead of time (gemm_tensor_tile.h).
// Warp:    WM x WN of them, as 16 x 16 sums in registers. A tile is two steps of k; in each, a warp loads a
//          fragment of A for every 16 rows and one of B for every 16 columns, and multiplies all pairs
//          (gemm_tensor_fragment.h).
#pragma once
#include "gemm/gemm_tensor_fragment.h"

namespace pyconv {

template <class T, Major A_MAJOR, Major B_MAJOR, int BM, int BN, int WM, int WN, int STAGES,
          Arithmetic ARITHMETIC = kOneProduct>
struct TensorLoop {
  typedef TensorTile<T, A_MAJOR, BM> TileA;
  typedef TensorTile<T, B_MAJOR, BN> TileB;
  typedef Sums<T> WarpSums[WM / 16][WN / 16];
  static constexpr int kWarpsN = BN / WN, kThreads = BM / WM * kWarpsN * kWarpSize;
  static constexpr int kStage = TileA::kElements + TileB::kElements;  // elements
  static constexpr int kSteps = TileA::kBk / Fragment<T>::kDepth;
  static_assert(WM % 16 == 0 && WN % 16 == 0, "a fragment is 16 x 16");

  // Where the warp's sums begin within the block.
  PYCONV_DEVICE int warp_m(int warp) { return warp / kWarpsN * WM; }
  PYCONV_DEVICE int warp_n(int warp) { return warp % kWarpsN * WN; }

  // Multiplies `tiles` tiles, and stores after every `chain` of them, so that no sum is longer than that.
  //
  //   copy_a(T* tile), copy_b(T* tile)             start the copies of the operand's next tile
  //   store(WarpSums, bool is_first, bool is_last) of the chains; once, with zeros, if there are no tiles
  template <class CopyA, class CopyB, class Store>
  PYCONV_DEVICE void run(T* stages, int tiles, int chain, const CopyA& copy_a, const CopyB& copy_b,
                         const Store& store) {
    const int warp = int(threadIdx.x) / kWarpSize, own_m = warp_m(warp), own_n = warp_n(warp);
    const auto after = [](int stage) { return stage + 1 < STAGES ? stage + 1 : 0; };

    // There is one group of copies per tile, even past the last: waiting counts groups.
    int copied = 0, copy_stage = 0;
    const auto copy_tile = [&] {
      if (copied < tiles) {
        T* const stage = &stages[copy_stage * kStage];
        copy_a(stage);
        copy_b(stage + TileA::kElements);
      }
      ++copied;
      copy_stage = after(copy_stage);
      cp_async_commit();
    };

    // The fragments of a step. Two sets: one is loaded while the other is multiplied.
    Fragment<T> of_a[2][WM / 16], of_b[2][WN / 16];
    const auto load_step = [&](int stage, int step) {
      const T *const tile_a = &stages[stage * kStage], *const tile_b = tile_a + TileA::kElements;
      PYCONV_UNROLL
      for (int i = 0; i < WM / 16; ++i)
        of_a[step % 2][i] = load_fragment<kOperandA, T, A_MAJOR, BM>(tile_a, own_m, i * 16, step);
      PYCONV_UNROLL
      for (int j = 0; j < WN / 16; ++j)
        of_b[step % 2][j] = load_fragment<kOperandB, T, B_MAJOR, BN>(tile_b, own_n, j * 16, step);
    };

    // Of tf32. After the multiplication that hid the loading: rounding is the first use of what was loaded.
    const auto round_step = [&](int step) {
      if constexpr (ARITHMETIC == kOneProduct) {
        PYCONV_UNROLL
        for (auto& fragment : of_a[step % 2]) round_fragment(fragment);
        PYCONV_UNROLL
        for (auto& fragment : of_b[step % 2]) round_fragment(fragment);
      }
    };

    for (int i = 0; i < STAGES - 1; ++i) copy_tile();
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    if (tiles > 0) {
      load_step(0, 0);
      round_step(0);
    }

    bool is_first = true;
    int tile = 0, stage = 0;
    do {
      WarpSums sums = {};
      for (const int end = tiles - tile < chain ? tiles : tile + chain; tile < end; ++tile) {
        copy_tile();  // into the stage of the tile before, which the last barrier says is read
        PYCONV_UNROLL
        for (int step = 0; step < kSteps; ++step) {
          if (step + 1 < kSteps) {
            load_step(stage, step + 1);
          } else {
            cp_async_wait<STAGES - 2>();
            __syncthreads();
            stage = after(stage);
            if (tile + 1 < tiles) load_step(stage, 0);
          }
          multiply_all<ARITHMETIC>(sums, of_a[step % 2], of_b[step % 2]);
          round_step(step + 1);
        }
      }
      // The last barrier says that the stages are read.
      store(sums, is_first, tile >= tiles);
      is_first = false;
    } while (tile < tiles);
  }
};

}  // namespace pyconv
