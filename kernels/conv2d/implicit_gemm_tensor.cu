// Implicit GEMM on tensor cores: a convolution in nhwc as the matrix product that it is, without the matrix.
//
//   fprop   y  (npq, k)   = x gathered (npq, rsc) * w^T (rsc, k)  + bias, and ReLU if asked for
//   dgrad   dx (nhw, c)   = dy gathered (nhw, rsk) * w (rsk, c)            for every residue class of the stride
//   wgrad   dw (k, rsc)   = dy^T (k, npq) * x gathered (npq, rsc)          for every split of npq
//
// for Half and BFloat16 (sums in float), float by way of tf32 or of three products of tf32, and double.
//
// im2col writes the gathered matrix to memory and the product reads it back. Here a block's tile of it exists in
// shared memory alone: cp.async fetches 16 bytes of a pixel's channels from wherever they lie, so gathering costs
// some instructions for the addresses and no traffic. The loop is that of the matrix product
// (gemm/gemm_tensor_loop.h); each operand has a page:
//
//           A                                           B
//   fprop   implicit_gemm_pixels.cuh, of x              w as a matrix in memory     (gemm/gemm_tensor_tile.h)
//   dgrad   implicit_gemm_pixels.cuh, of dy             implicit_gemm_filters.cuh
//   wgrad   dy as a matrix in memory                    implicit_gemm_patches.cuh
//
// Block:   BM x BN results of one group (in dgrad of one class, in wgrad of one split), warps of WM x WN.
//
// The order of a sum is that of gemm_k, whatever the tile: in fprop and dgrad the bits of a sample do not depend on its
// batch. wgrad's splits come from the problem and are added by sum_splits.cu in order.
// After NVIDIA's CUTLASS (cutlass/conv/threadblock, the "optimized" iterators).
#include "conv2d/implicit_gemm_filters.cuh"
#include "conv2d/implicit_gemm_patches.cuh"
#include "conv2d/implicit_gemm_pixels.cuh"
#include "gemm/gemm_tensor_loop.h"
#include "gemm/gemm_tensor_store.h"

namespace pyconv {

// Terms of a chain: sums of double, and of float in three products, pass through the result (operands.h). A step of
// these three adds 8 terms at once to the sum.
constexpr int kUncut = 0x7fffffc0;
template <class T, class C, Arithmetic ARITHMETIC>
constexpr int kChainTerms = sizeof(T) == 8             ? kChain<C>
                            : ARITHMETIC == kThreeTf32 ? 8 * kChain<C>
                                                       : kUncut;

// ---- fprop and dgrad -------------------------------------------------------------------------------------------

template <class T, Pass PASS, Arithmetic ARITHMETIC, Activation ACTIVATION, int BM, int BN, int WM, int WN,
          int STAGES, int BLOCKS_PER_SM>
__global__ void __launch_bounds__(BM / WM * (BN / WN) * kWarpSize, BLOCKS_PER_SM)
    implicit_gemm_tensor(const __grid_constant__ GatherPlan plan, const T* __restrict__ in,
                         const T* __restrict__ w, const T* __restrict__ bias, T* out) {
  constexpr Major kMajorOfW = PASS == kFprop ? kKMajor : kMnMajor;
  typedef TensorLoop<T, kKMajor, kMajorOfW, BM, BN, WM, WN, STAGES, ARITHMETIC> Loop;
  typedef PixelCopier<T, PASS, BM, Loop::kThreads> Pixels;
  typedef TileCopier<T, kKMajor, BN, Loop::kThreads> Lines;
  typedef FilterCopier<T, BN, Loop::kThreads> Filters;
  typedef WarpStore<T, T, WM, WN, ACTIVATION, (kChainTerms<T, T, ARITHMETIC> < kUncut)> Store;
  static_assert(Store::fits(Loop::kThreads, STAGES * Loop::kStage), "sums are turned in the memory of the stages");

  PYCONV_DYNAMIC_SHARED(T, stages);  // STAGES times: the tile of A, that of B
  const GatherBlock<PASS> block = gather_block<PASS, BM, BN>(plan, blockIdx.x);
  if (block.gemm.m0 >= block.gemm_m) return;  // the class is smaller than the largest
  auto pixels = Pixels::start(plan, block, in);
  const int tiles = int(ceil_div(block.gemm_k, Loop::TileA::kBk));
  constexpr int kChainTiles = kChainTerms<T, T, ARITHMETIC> / Loop::TileA::kBk;

  const auto copy_pixels = [&](T* tile) { Pixels::copy(plan, block, pixels, tile); };
  const auto store = [&](const typename Loop::WarpSums& sums, bool is_first, bool is_last) {
    // The block is found again, so that no register keeps it.
    const GatherBlock<PASS> to = gather_block<PASS, BM, BN>(plan, unsigned(recomputed(int(blockIdx.x))));
    const int warp = recomputed(int(threadIdx.x)) / kWarpSize;
    GemmProblem of_class = plan.gemm;
    of_class.gemm_m = to.gemm_m;
    Store::store(of_class, sums, Store::shared(stages, warp), to.gemm.m0 + Loop::warp_m(warp),
                 to.gemm.n0 + Loop::warp_n(warp),
                 PASS == kFprop && bias ? bias + to.gemm.batch * plan.gemm.bias_stride : nullptr,
                 Store::kHasChains && !is_first, is_last, out + matrix_offset(plan.gemm.c, to.gemm.batch),
                 GatherLines<PASS>{plan, to.at});
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

// C is T, or the type of its sums where dw holds the partial sums of splits.
template <class T, class C, Arithmetic ARITHMETIC, int BM, int BN, int WM, int WN, int STAGES, int BLOCKS_PER_SM>
__global__ void __launch_bounds__(BM / WM * (BN / WN) * kWarpSize, BLOCKS_PER_SM)
    implicit_gemm_tensor_wgrad(const __grid_constant__ PatchPlan plan, const T* __restrict__ x,
                               const T* __restrict__ dy, C* dw) {
  typedef TensorLoop<T, kMnMajor, kMnMajor, BM, BN, WM, WN, STAGES, ARITHMETIC> Loop;
  typedef TileCopier<T, kMnMajor, BM, Loop::kThreads> Lines;
  typedef PatchCopier<T, BN, Loop::kThreads> Patches;
  typedef WarpStore<T, C, WM, WN, kLinear, (kChainTerms<T, C, ARITHMETIC> < kUncut)> Store;
  static_assert(Store::fits(Loop::kThreads, STAGES * Loop::kStage), "sums are turned in the memory of the stages");

  PYCONV_DYNAMIC_SHARED(T, stages);  // STAGES times: the tile of A, that of B
  const GemmBlock block = gemm_block<BM, BN>(plan.gemm, blockIdx.x);
  auto lines = Lines::start(plan.gemm.a, dy + matrix_offset(plan.gemm.a, block.batch), block.m0, plan.gemm.gemm_m,
                            block.k_begin, block.k_end);
  auto patches = Patches::start(plan, block, x);
  const int tiles = int(ceil_div(block.k_end - block.k_begin, Loop::TileA::kBk));

  Loop::run(
      stages, tiles, kChainTerms<T, C, ARITHMETIC> / Loop::TileA::kBk,
      [&](T* tile) { Lines::copy(plan.gemm.a, lines, tile); },
      [&](T* tile) { Patches::copy(plan, patches, tile); },
      [&](const typename Loop::WarpSums& sums, bool is_first, bool is_last) {
        const GemmBlock to = gemm_block_again<BM, BN>(plan.gemm, blockIdx.x);
        const int warp = recomputed(int(threadIdx.x)) / kWarpSize;
        Store::store(plan.gemm, sums, Store::shared(stages, warp), to.m0 + Loop::warp_m(warp),
                     to.n0 + Loop::warp_n(warp), static_cast<const T*>(nullptr), Store::kHasChains && !is_first,
                     is_last, dw + matrix_offset(plan.gemm.c, to.batch) + to.split * plan.gemm.split_stride,
                     LayoutLines{plan.gemm.c});
      });
}

}  // namespace pyconv
