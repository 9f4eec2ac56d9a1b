// The product of operands.h, rung 1 of the ladder: tiles in shared memory.
//
//   C[m, n] = sum over k of A[m, k] * B[k, n] (+ bias)
//
// Block:   TILE x TILE elements of C. TILE terms at a time, it copies a TILE x TILE tile of A and one of B to
// shared
//          memory, so that each element loaded from global memory takes part in TILE products instead of one.
// Thread:  one element of C. Lanes run along n, so a warp stores whole rows of 32.
//
// What it removes: DRAM and L2 traffic, by a factor of TILE. What remains: two loads from shared memory for each
// FMA, and both are warp-wide instructions that take as long as the FMA. gemm_register.cu removes those.
#include "gemm/operands.h"

namespace pyconv {

template <class T, class C, Major A_MAJOR, Major B_MAJOR, int TILE>
__global__ void __launch_bounds__(TILE* TILE)
    gemm_tiled(GemmProblem problem, const T* __restrict__ a, const T* __restrict__ b, const T* __restrict__ bias,
               C* __restrict__ c) {
  typedef Accumulator<T> Sum;
  // One column more than the tile: lanes that write down a column then meet 32 different banks.
  PYCONV_SHARED(Sum, a_tile, [TILE][TILE + 1]);  // [m][k]
  PYCONV_SHARED(Sum, b_tile, [TILE][TILE + 1]);  // [k][n]

  const GemmBlock block = gemm_block<TILE, TILE>(problem, blockIdx.x);
  a += matrix_offset(problem.a, block.batch);
  b += matrix_offset(problem.b, block.batch);
  c += matrix_offset(problem.c, block.batch) + block.split * problem.split_stride;
  if (bias) bias += block.batch * problem.bias_stride;
  const int row = threadIdx.x / TILE, lane = threadIdx.x % TILE;

  Sum sum = 0;
  for (int k0 = block.k_begin; k0 < block.k_end; k0 += TILE) {
    // Load. Lanes run along the lines of the matrix in memory.
    const int a_m = A_MAJOR == kKMajor ? row : lane, a_k = A_MAJOR == kKMajor ? lane : row;
    const int b_n = B_MAJOR == kKMajor ? row : lane, b_k = B_MAJOR == kKMajor ? lane : row;
    a_tile[a_m][a_k] =
        element_or_zero<A_MAJOR>(a, problem.a, block.m0 + a_m, problem.gemm_m, k0 + a_k, block.k_end);
    b_tile[b_k][b_n] =
        element_or_zero<B_MAJOR>(b, problem.b, block.n0 + b_n, problem.gemm_n, k0 + b_k, block.k_end);
    __syncthreads();

    // Compute. A sum of its own for each tile keeps the chains of additions short.
    Sum tile_sum = 0;
    PYCONV_UNROLL
    for (int k = 0; k < TILE; ++k) tile_sum = fused(a_tile[row][k], b_tile[k][lane], tile_sum);
    sum += tile_sum;
    __syncthreads();  // before the next tile overwrites this one
  }

  // Store.
  const int m = block.m0 + row, n = block.n0 + lane;
  if (m < problem.gemm_m && n < problem.gemm_n) {
    C* to = c + line_offset(problem.c, m) + place_offset(problem.c, n);
    store_sum(problem, bias, m, n, sum, problem.accumulate, to);
  }
}

}  // namespace pyconv
