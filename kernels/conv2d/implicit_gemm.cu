// Implicit GEMM in float and double: a convolution in nhwc as the matrix product that it is, without the matrix.
//
//   fprop   y  (npq, k)   = x gathered (npq, rsc) * w^T (rsc, k)  + bias, and ReLU if asked for
//   dgrad   dx (nhw, c)   = dy gathered (nhw, rsk) * w (rsk, c)            for every residue class of the stride
//   wgrad   dw (k, rsc)   = dy^T (k, npq) * x gathered (npq, rsc)          for every split of npq
//
// Block:   BM x BN results of one group (in dgrad of one class, in wgrad of one split); implicit_gemm_simt.cuh says what
//          a warp and a thread have of them.
//
// The operands are those of implicit_gemm_tensor.cu, and so are the pages that fetch them:
//
//           A                                           B
//   fprop   implicit_gemm_pixels.cuh, of x              w as a matrix in memory     (gemm/gemm_tensor_tile.h)
//   dgrad   implicit_gemm_pixels.cuh, of dy             implicit_gemm_filters.cuh
//   wgrad   dy as a matrix in memory                    implicit_gemm_patches.cuh
//
// Sums are added in chains (operands.h), whatever the tile: in fprop and dgrad the bits of a sample do not depend on its
// batch. wgrad's splits come from the problem and are added by sum_splits.cu in order.
#include "conv2d/implicit_gemm_filters.cuh"
#include "conv2d/implicit_gemm_patches.cuh"
#include "conv2d/implicit_gemm_pixels.cuh"
#include "conv2d/implicit_gemm_simt.cuh"

namespace pyconv {

// ---- fprop and dgrad -------------------------------------------------------------------------------------------

template <class T, Pass PASS, Activation ACTIVATION, int BM, int BN, int WARPS_M, int WARPS_N, int STAGES,
          int BLOCKS_PER_SM>
__global__ void __launch_bounds__(WARPS_M * WARPS_N * kWarpSize, BLOCKS_PER_SM)
    implicit_gemm(const __grid_constant__ GatherPlan plan, const T* __restrict__ in, const T* __restrict__ w,
                  const T* __restrict__ bias, T* out) {
  constexpr Major kMajorOfW = PASS == kFprop ? kKMajor : kMnMajor;
  typedef SimtLoop<T, kKMajor, kMajorOfW, BM, BN, WARPS_M, WARPS_N, STAGES> Loop;
  typedef PixelCopier<T, PASS, BM, Loop::kThreads> Pixels;
  typedef TileCopier<T, kKMajor, BN, Loop::kThreads> Lines;
  typedef FilterCopier<T, BN, Loop::kThreads> Filters;

  PYCONV_DYNAMIC_SHARED(T, stages);  // STAGES times: the tile of A, that of B
  const GatherBlock<PASS> block = gather_block<PASS, BM, BN>(plan, blockIdx.x);
  if (block.gemm.m0 >= block.gemm_m) return;  // the class is smaller than the largest
  auto pixels = Pixels::start(plan, block, in);
  const int tiles = int(ceil_div(block.gemm_k, Loop::TileA::kBk));
  constexpr int kChainTiles = kChain<T> / Loop::TileA::kBk;

  const auto copy_pixels = [&](T* tile) { Pixels::copy(plan, block, pixels, tile); };
  const auto store = [&](const typename Loop::ThreadSums& sums, bool is_first, bool is_last) {
    // The block is found again, so that no register keeps it.
    const GatherBlock<PASS> to = gather_block<PASS, BM, BN>(plan, unsigned(recomputed(int(blockIdx.x))));
    GemmProblem of_class = plan.gemm;
    of_class.gemm_m = to.gemm_m;
    store_sums<Loop, kMajorOfW, ACTIVATION>(
        of_class, sums, to.gemm.m0, to.gemm.n0,
        PASS == kFprop && bias ? bias + to.gemm.batch * plan.gemm.bias_stride : nullptr, !is_first, is_last,
        out + matrix_offset(plan.gemm.c, to.gemm.batch), GatherLines<PASS>{plan, to.at});
  };
  if constexpr (PASS == kFprop) {
    auto lines = Lines::start(plan.gemm.b, w + matrix_offset(plan.gemm.b, block.gemm.batch), block.gemm.n0,
                              plan.gemm.gemm_n, 0, block.gemm_k);
    Loop::run(
        stages, tiles, kChainTiles, copy_pixels, [&](T* tile) { Lines::copy(plan.gemm.b, lines, tile); }, store);
  } else {
    auto filters = Filters::start(plan, block, w);
    Loop::run(
        stages, tiles, kChainTiles, copy_pixels, [&](T* tile) { Filters::copy(plan, block, filters, tile); },
        store);
  }
}

// ---- wgrad -----------------------------------------------------------------------------------------------------

// dw, or the partial sums of splits.
template <class T, int BM, int BN, int WARPS_M, int WARPS_N, int STAGES, int BLOCKS_PER_SM>
__global__ void __launch_bounds__(WARPS_M * WARPS_N * kWarpSize, BLOCKS_PER_SM)
    implicit_gemm_wgrad(const __grid_constant__ PatchPlan plan, const T* __restrict__ x, const T* __restrict__ dy,
                        T* dw) {
  typedef SimtLoop<T, kMnMajor, kMnMajor, BM, BN, WARPS_M, WARPS_N, STAGES> Loop;
  typedef TileCopier<T, kMnMajor, BM, Loop::kThreads> Lines;
  typedef PatchCopier<T, BN, Loop::kThreads> Patches;

  PYCONV_DYNAMIC_SHARED(T, stages);  // STAGES times: the tile of A, that of B
  const GemmBlock block = gemm_block<BM, BN>(plan.gemm, blockIdx.x);
  auto lines = Lines::start(plan.gemm.a, dy + matrix_offset(plan.gemm.a, block.batch), block.m0, plan.gemm.gemm_m,
                            block.k_begin, block.k_end);
  auto patches = Patches::start(plan, block, x);
  const int tiles = int(ceil_div(block.k_end - block.k_begin, Loop::TileA::kBk));

  Loop::run(
      stages, tiles, kChain<T> / Loop::TileA::kBk, [&](T* tile) { Lines::copy(plan.gemm.a, lines, tile); },
      [&](T* tile) { Patches::copy(plan, patches, tile); },
      [&](const typename Loop::ThreadSums& sums, bool is_first, bool is_last) {
        const GemmBlock to = gemm_block_again<BM, BN>(plan.gemm, blockIdx.x);
        store_sums<Loop, kMnMajor, kLinear>(
            plan.gemm, sums, to.m0, to.n0, static_cast<const T*>(nullptr), !is_first, is_last,
            dw + matrix_offset(plan.gemm.c, to.batch) + to.split * plan.gemm.split_stride,
            LayoutLines{plan.gemm.c});
      });
}

}  // namespace pyconv
