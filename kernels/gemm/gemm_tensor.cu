// The product of operands.h, the last rung of the ladder: tensor cores.
//
//   C[m, n] = sum over k of A[m, k] * B[k, n] (+ bias)
//
// for Half and BFloat16 (sums in float), float by way of tf32 (operands rounded to 10 fraction bits, sums in
// float), and double.
//
// Block:   BM x BN elements of C. Its tiles of A and B, 64 bytes of k each, pass through a ring of STAGES in
//          shared memory, which cp.async fills ahead of time (gemm_tensor_tile.h).
// Warp:    WM x WN of them, as 16 x 16 sums in registers. A tile is two steps of k; in each, a warp loads a
//          fragment of A for every 16 rows and one of B for every 16 columns, and multiplies all pairs
//          (gemm_tensor_fragment.h). One instruction does 2,048 multiply-adds of 16 bits, where an FMA does 32.
// Thread:  of every fragment what mma.h says.
//
//   tile t:   start copying t+2 | load step 1 | multiply step 0 | barrier | load step 0 of t+1 | multiply step 1
//
// What it removes: the FMAs themselves, the bottleneck of the pipelined rung. What remains is feeding the tensor
// cores. Floors with the tiles of tensor_launch.py (BM = BN = 128; WM x WN = 64 x 64, of double 64 x 32), by
// the data sheet of an A100: a multiprocessor does 1,024 multiply-adds of 16 bits a cycle, and its shared memory
// moves 128 bytes.
//
//   L2 cache        2*BM*BN*BK flops for (BM + BN) * 64 bytes: 64 flops a byte of 16-bit types, 32 of float, 16 of
//                   double. At 312 TFLOP/s of 16 bits that is 4.9 TB/s: no room for smaller tiles.
//   shared memory   in a step, a warp reads (WM + WN) * 32 bytes for 32 instructions of 2 cycles each: half of
//                   what there is. Filling the stages takes a quarter more. With warps of 64 x 32 it would be all.
//   registers       of a lane, 128 for the sums and 64 for the fragments of two steps. 255 hold these and the
//                   addresses; a multiprocessor then holds 8 such warps.
//
// The order of a sum is that of k, one instruction after the other; splits and chains are those of operands.h.
// After the multistage main loop of NVIDIA's CUTLASS (cutlass/gemm/threadblock/mma_multistage.h).
#include "gemm/gemm_tensor_store.h"

namespace pyconv {

template <class T, class C, Major A_MAJOR, Major B_MAJOR, int BM, int BN, int WM, int WN, int STAGES,
          int BLOCKS_PER_SM>
__global__ void __launch_bounds__(BM / WM * (BN / WN) * kWarpSize, BLOCKS_PER_SM)
    gemm_tensor(GemmProblem problem, const T* __restrict__ a, const T* __restrict__ b, const T* __restrict__ bias,
                C* c) {
  constexpr int kWarpsN = BN / WN, kWarps = BM / WM * kWarpsN, kThreads = kWarps * kWarpSize;
  typedef TensorTile<T, A_MAJOR, BM> TileA;
  typedef TensorTile<T, B_MAJOR, BN> TileB;
  typedef TileCopier<T, A_MAJOR, BM, kThreads> CopierA;
  typedef TileCopier<T, B_MAJOR, BN, kThreads> CopierB;
  typedef WarpStore<T, C, WM, WN> Store;
  constexpr int kStage = TileA::kElements + TileB::kElements, kSteps = TileA::kBk / Fragment<T>::kDepth;
  static_assert(WM % 16 == 0 && WN % 16 == 0, "a fragment is 16 x 16");
  static_assert(kWarps * Store::kSharedSums * sizeof(Accumulator<T>) <= STAGES * kStage * sizeof(T),
                "the epilogue turns its sums in the memory of the stages");

  PYCONV_DYNAMIC_SHARED(T, stages);  // STAGES times: the tile of A, that of B
  const int warp = int(threadIdx.x) / kWarpSize, warp_m = warp / kWarpsN * WM, warp_n = warp % kWarpsN * WN;
  const GemmBlock block = gemm_block<BM, BN>(problem, blockIdx.x);
  auto from_a = CopierA::start(problem.a, a + matrix_offset(problem.a, block.batch), block.m0, problem.gemm_m,
                               block.k_begin, block.k_end);
  auto from_b = CopierB::start(problem.b, b + matrix_offset(problem.b, block.batch), block.n0, problem.gemm_n,
                               block.k_begin, block.k_end);
  const int tiles = int(ceil_div(block.k_end - block.k_begin, TileA::kBk));
  const auto after = [](int stage) { return stage + 1 < STAGES ? stage + 1 : 0; };

  // Starts the copies of the next tile. There is one group per tile, even past the last: waiting counts groups.
  int copied = 0, copy_stage = 0;
  const auto copy_tile = [&] {
    if (copied < tiles) {
      T* const stage = &stages[copy_stage * kStage];
      CopierA::copy(problem.a, from_a, stage);
      CopierB::copy(problem.b, from_b, stage + TileA::kElements);
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
      of_a[step % 2][i] = load_fragment<kOperandA, T, A_MAJOR, BM>(tile_a, warp_m, i * 16, step);
    PYCONV_UNROLL
    for (int j = 0; j < WN / 16; ++j)
      of_b[step % 2][j] = load_fragment<kOperandB, T, B_MAJOR, BN>(tile_b, warp_n, j * 16, step);
  };

  // Of tf32. After the multiplication that hid the loading: rounding is the first use of what was loaded.
  const auto round_step = [&](int step) {
    PYCONV_UNROLL
    for (auto& fragment : of_a[step % 2]) round_fragment(fragment);
    PYCONV_UNROLL
    for (auto& fragment : of_b[step % 2]) round_fragment(fragment);
  };

  for (int i = 0; i < STAGES - 1; ++i) copy_tile();
  cp_async_wait<STAGES - 2>();
  __syncthreads();
  if (tiles > 0) {
    load_step(0, 0);
    round_step(0);
  }

  bool add = problem.accumulate;
  int tile = 0, stage = 0;
  do {  // once even if there are no terms: C is then 0 or the bias
    Sums<T> sums[WM / 16][WN / 16] = {};
    const int chain = sizeof(T) == 8 ? kChain<C> / TileA::kBk : tiles;
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
        PYCONV_UNROLL
        for (int i = 0; i < WM / 16; ++i) {
          PYCONV_UNROLL
          for (int j = 0; j < WN / 16; ++j) multiply(sums[i][j], of_a[step % 2][i], of_b[step % 2][j]);
        }
        round_step(step + 1);
      }
    }
    // The last barrier says that the stages are read. The block is found again, so that no register keeps it.
    const GemmBlock to = gemm_block<BM, BN>(problem, unsigned(recomputed(int(blockIdx.x))));
    Store::store(problem, sums, &reinterpret_cast<Accumulator<T>*>(stages)[warp * Store::kSharedSums],
                 to.m0 + warp_m, to.n0 + warp_n, bias ? bias + to.batch * problem.bias_stride : nullptr, add,
                 c + matrix_offset(problem.c, to.batch) + to.split * problem.split_stride);
    add = true;
  } while (tile < tiles);
}

}  // namespace pyconv
