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
// The loop is in gemm_tensor_loop.h, because convolutions share it.
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
#include "gemm/gemm_tensor_loop.h"
#include "gemm/gemm_tensor_store.h"

namespace pyconv {

template <class T, class C, Major A_MAJOR, Major B_MAJOR, int BM, int BN, int WM, int WN, int STAGES,
          int BLOCKS_PER_SM>
__global__ void __launch_bounds__(BM / WM * (BN / WN) * kWarpSize, BLOCKS_PER_SM)
    gemm_tensor(GemmProblem problem, const T* __restrict__ a, const T* __restrict__ b, const T* __restrict__ bias,
                C* c) {
  typedef TensorLoop<T, A_MAJOR, B_MAJOR, BM, BN, WM, WN, STAGES> Loop;
  typedef TileCopier<T, A_MAJOR, BM, Loop::kThreads> CopierA;
  typedef TileCopier<T, B_MAJOR, BN, Loop::kThreads> CopierB;
  typedef WarpStore<T, C, WM, WN> Store;
  static_assert(Store::fits(Loop::kThreads, STAGES * Loop::kStage), "sums are turned in the memory of the stages");

  PYCONV_DYNAMIC_SHARED(T, stages);  // STAGES times: the tile of A, that of B
  const GemmBlock block = gemm_block<BM, BN>(problem, blockIdx.x);
  auto from_a = CopierA::start(problem.a, a + matrix_offset(problem.a, block.batch), block.m0, problem.gemm_m,
                               block.k_begin, block.k_end);
  auto from_b = CopierB::start(problem.b, b + matrix_offset(problem.b, block.batch), block.n0, problem.gemm_n,
                               block.k_begin, block.k_end);
  const int tiles = int(ceil_div(block.k_end - block.k_begin, Loop::TileA::kBk));
  const int chain = sizeof(T) == 8 ? kChain<C> / Loop::TileA::kBk : tiles;

  Loop::run(
      stages, tiles, chain, [&](T* tile) { CopierA::copy(problem.a, from_a, tile); },
      [&](T* tile) { CopierB::copy(problem.b, from_b, tile); },
      [&](const typename Loop::WarpSums& sums, bool is_first, bool is_last) {
        // The block is found again, so that no register keeps it.
        const GemmBlock to = gemm_block<BM, BN>(problem, unsigned(recomputed(int(blockIdx.x))));
        const int warp = int(threadIdx.x) / kWarpSize;
        Store::store(
            problem, sums, Store::shared(stages, warp), to.m0 + Loop::warp_m(warp), to.n0 + Loop::warp_n(warp),
            bias ? bias + to.batch * problem.bias_stride : nullptr, problem.accumulate || !is_first, is_last,
            c + matrix_offset(problem.c, to.batch) + to.split * problem.split_stride, LayoutLines{problem.c});
      });
}

}  // namespace pyconv
