// The product of operands.h, rung 2 of the ladder: a tile of sums in the registers of each thread.
//
//   C[m, n] = sum over k of A[m, k] * B[k, n] (+ bias)
//
// Block:   BM x BN elements of C, BK terms at a time, through tiles of A and B in shared memory.
// Thread:  TM x TN elements of C. For each k it loads TM elements of A and TN of B and multiplies all pairs:
//          TM + TN loads for TM*TN FMAs, at 8 x 8 a quarter of a load for each where gemm_tiled.cu has two.
//          Its rows are kThreadsM apart and its columns kThreadsN, so that lanes next to each other read elements
//          next to each other (no bank conflicts) and store them next to each other (whole sectors).
//
// What it removes: shared-memory traffic, the bottleneck of the tiled rung. What remains: every tile is waited for
// twice, once while it comes from memory and once while it is written to shared memory, and 8 x 8 elements take 16
// scalar loads. gemm_pipelined.cu removes both.
//
// After V. Volkov and J. Demmel, Benchmarking GPUs to tune dense linear algebra (SC 2008).
#include "gemm/operands.h"

namespace pyconv {

// Copies a tile to shared memory, tile[k][across] = A[m0 + across, k0 + k] or B[k0 + k, n0 + across], with zeros
// outside the matrix. Lanes run along the lines of the matrix in memory.
template <Major MAJOR, int ACROSS, int BK, int THREADS, int PITCH, class T>
PYCONV_DEVICE void load_tile(Accumulator<T> (&tile)[BK][PITCH], const T* matrix, const MatrixLayout& layout,
                             int across0, int across_end, int k0, int k_end) {
  static_assert(ACROSS * BK % THREADS == 0, "every thread copies the same number of elements");
  PYCONV_UNROLL
  for (int i = 0; i < ACROSS * BK / THREADS; ++i) {
    const int element = i * THREADS + int(threadIdx.x);
    const int k = MAJOR == kKMajor ? element % BK : element / ACROSS;
    const int across = MAJOR == kKMajor ? element / BK : element % ACROSS;
    tile[k][across] = element_or_zero<MAJOR>(matrix, layout, across0 + across, across_end, k0 + k, k_end);
  }
}

template <class T, class C, Major A_MAJOR, Major B_MAJOR, int BM, int BN, int BK, int TM, int TN>
__global__ void __launch_bounds__((BM / TM) * (BN / TN), 2)
    gemm_register(GemmProblem problem, const T* __restrict__ a, const T* __restrict__ b,
                  const T* __restrict__ bias, C* c) {
  typedef Accumulator<T> Sum;
  constexpr int kThreadsM = BM / TM, kThreadsN = BN / TN, kThreads = kThreadsM * kThreadsN;
  // 16 bytes more than the tile: the lanes that write a K-major line go down columns, BK = 8 of them side by side
  // in a warp of 8 x 4, and 8 rows of this pitch plus 4 columns are 32 different banks.
  constexpr int kPad = 16 / sizeof(Sum);
  PYCONV_SHARED(Sum, a_tile, [BK][BM + kPad]);
  PYCONV_SHARED(Sum, b_tile, [BK][BN + kPad]);

  const GemmBlock block = gemm_block<BM, BN>(problem, blockIdx.x);
  a += matrix_offset(problem.a, block.batch);
  b += matrix_offset(problem.b, block.batch);
  c += matrix_offset(problem.c, block.batch) + block.split * problem.split_stride;
  if (bias) bias += block.batch * problem.bias_stride;
  const int thread_m = threadIdx.x / kThreadsN, thread_n = threadIdx.x % kThreadsN;

  int k0 = block.k_begin;
  bool add = problem.accumulate;
  do {  // once even if there are no terms: C is then 0 or the bias
    Sum sum[TM][TN] = {};
    _Pragma("unroll 1") for (const int end = chain_end<C>(k0, block.k_end); k0 < end; k0 += BK) {
      load_tile<A_MAJOR, BM, BK, kThreads>(a_tile, a, problem.a, block.m0, problem.gemm_m, k0, block.k_end);
      load_tile<B_MAJOR, BN, BK, kThreads>(b_tile, b, problem.b, block.n0, problem.gemm_n, k0, block.k_end);
      __syncthreads();

      PYCONV_UNROLL
      for (int k = 0; k < BK; ++k) {
        Sum a_column[TM], b_row[TN];
        PYCONV_UNROLL
        for (int i = 0; i < TM; ++i) a_column[i] = a_tile[k][thread_m + i * kThreadsM];
        PYCONV_UNROLL
        for (int j = 0; j < TN; ++j) b_row[j] = b_tile[k][thread_n + j * kThreadsN];
        PYCONV_UNROLL
        for (int i = 0; i < TM; ++i) PYCONV_UNROLL
        for (int j = 0; j < TN; ++j) sum[i][j] = fused(a_column[i], b_row[j], sum[i][j]);
      }
      __syncthreads();  // before the next tile overwrites this one
    }

    PYCONV_UNROLL
    for (int j = 0; j < TN; ++j) {
      const int n = block.n0 + recomputed(thread_n) + j * kThreadsN;
      if (n < problem.gemm_n) {
        int m = block.m0 + recomputed(thread_m);
        C* to = c + line_offset(problem.c, m) + place_offset(problem.c, n);
        PYCONV_UNROLL
        for (int i = 0; i < TM; ++i) {
          if (m < problem.gemm_m) store_sum(problem, bias, m, n, sum[i][j], add, to);
          m += kThreadsM, to += kThreadsM * problem.c.line_stride;
        }
      }
      keep_order();
    }
    add = true;
  } while (k0 < block.k_end);
}

}  // namespace pyconv
