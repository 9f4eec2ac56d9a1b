// The product of operands.h, rung 3 of the ladder: vectors, and copies that run while the block computes.
//
//   C[m, n] = sum over k of A[m, k] * B[k, n] (+ bias)          float and double
//
// Block:   BM x BN elements of C, 8 warps as 4 x 2, BK terms at a time.
// Warp:    BM/4 x BN/2 elements, 32 lanes as 4 x 8.
// Thread:  BM/16 x BN/16 elements, in squares of V x V, where V elements are 16 bytes: 8 x 8 floats are 2 x 2 squares,
//          4*V rows and 8*V columns apart. V elements of a column of A, or of a row of B, are one 16-byte load. The
//          lanes of a warp together read 64 (A) or 128 (B) consecutive bytes, so banks never conflict. V columns of a
//          row of C are one 16-byte store, and 8 lanes store 128 consecutive bytes.
//
// Pipeline, with STAGES = 3 tiles in shared memory:
//
//   copy     | 0 | 1 | 2 | 3 | 4 |         started, not waited for (gemm_pipelined_copy.h)
//   compute          | 0 | 1 | 2 |         one barrier a tile: it ends the tile that is overwritten next
//
// What it removes: the wait for memory, and 12 of 16 instructions that load from shared memory. What remains, for 64
// FMAs: 4 loads, and 5 to 12 instructions for the copies and the loop. Only other arithmetic is faster:
// gemm_tensor.cu.
//
// After S. Gray, SGEMM (the maxas project, 2014), for the assignment of lanes, and NVIDIA's CUTLASS.
#include "common/vector.h"
#include "gemm/gemm_pipelined_copy.h"

namespace pyconv {

constexpr int kPipelinedThreads = 256;

template <class T, int BM, int BN>
struct ThreadTile {
  static constexpr int V = kVector16<T>, kRows = BM / 16, kColumns = BN / 16;  // elements of C
  static constexpr int kRowSquares = kRows / V, kColumnSquares = kColumns / V;
  static constexpr int kRowStep = 4 * V, kColumnStep = 8 * V;  // from square to square
  static_assert(kRows % V == 0 && kColumns % V == 0, "4 x 2 warps of 4 x 8 lanes have whole squares");
  // Blocks that a multiprocessor is to hold. 8 x 8 floats and what multiplies them take 128 registers, of which it
  // has enough for 512 threads; 4 x 4 take half.
  static constexpr int kBlocks = kRows * kColumns * int(sizeof(T)) >= 128 ? 2 : 4;

  PYCONV_HOST_DEVICE static int first_row(int thread) {
    return thread / kWarpSize / 2 * (BM / 4) + thread % kWarpSize / 8 * V;
  }
  PYCONV_HOST_DEVICE static int first_column(int thread) {
    return thread / kWarpSize % 2 * (BN / 2) + thread % 8 * V;
  }
};

// The products of one tile. The pointers are at the thread's first row and column.
template <class T, int BM, int BN, int BK, int PITCH_A, int PITCH_B, class Own = ThreadTile<T, BM, BN>>
PYCONV_DEVICE void multiply_tile(const T* a_tile, const T* b_tile, T (&sum)[Own::kRows][Own::kColumns]) {
  constexpr int V = Own::V;
  PYCONV_UNROLL
  for (int k = 0; k < BK; ++k) {
    Vector<T, V> a[Own::kRowSquares], b[Own::kColumnSquares];
    PYCONV_UNROLL
    for (int square = 0; square < Own::kRowSquares; ++square)
      a[square] = load_vector<V>(a_tile + k * PITCH_A + square * Own::kRowStep);
    PYCONV_UNROLL
    for (int square = 0; square < Own::kColumnSquares; ++square)
      b[square] = load_vector<V>(b_tile + k * PITCH_B + square * Own::kColumnStep);
    PYCONV_UNROLL
    for (int i = 0; i < Own::kRows; ++i) {
      PYCONV_UNROLL
      for (int j = 0; j < Own::kColumns; ++j)
        sum[i][j] = fused(a[i / V].element[i % V], b[j / V].element[j % V], sum[i][j]);
    }
  }
}

// Stores V elements of a row of C, in one access if they are side by side and all inside. `row` is at column 0.
template <int V, class T>
PYCONV_DEVICE void store_in_row(const GemmProblem& problem, const T* bias, int m, int n, const T* sum, bool add,
                                bool vectors, T* row) {
  if (!vectors || n + V > problem.gemm_n) {
    PYCONV_UNROLL
    for (int j = 0; j < V; ++j)
      if (n + j < problem.gemm_n)
        store_sum(problem, bias, m, n + j, sum[j], add, row + place_offset(problem.c, n + j));
    return;
  }
  T* to = row + place_offset(problem.c, n);
  Vector<T, V> total = {};
  if (add) {
    total = load_vector<V>(to);
  } else if (bias) {
    PYCONV_UNROLL
    for (int j = 0; j < V; ++j) total.element[j] = bias[problem.bias_along == kBiasAlongM ? m : n + j];
  }
  PYCONV_UNROLL
  for (int j = 0; j < V; ++j) total.element[j] += sum[j];
  store_vector(to, total);
}

// Stores the sums of the block. It works out anew where they go: what is not kept during the sums leaves registers to
// them.
template <int BM, int BN, class T, class Own = ThreadTile<T, BM, BN>>
PYCONV_DEVICE void store_tile(const GemmProblem& problem, const T* bias, T* c,
                              const T (&sum)[Own::kRows][Own::kColumns], bool add) {
  constexpr int V = Own::V;
  const int thread = recomputed(threadIdx.x);
  const GemmBlock block = gemm_block<BM, BN>(problem, recomputed(blockIdx.x));
  c += matrix_offset(problem.c, block.batch) + block.split * problem.split_stride;
  if (bias) bias += block.batch * problem.bias_stride;
  const bool vectors = has_vectors<V>(problem.c) && problem.split_stride % V == 0;
  PYCONV_UNROLL
  for (int i = 0; i < Own::kRows; ++i) {
    const int m = block.m0 + Own::first_row(thread) + i / V * Own::kRowStep + i % V;
    PYCONV_UNROLL
    for (int j = 0; j < Own::kColumns; j += V) {
      const int n = block.n0 + Own::first_column(thread) + j / V * Own::kColumnStep;
      if (m < problem.gemm_m)
        store_in_row<V>(problem, bias, m, n, &sum[i][j], add, vectors, c + line_offset(problem.c, m));
    }
    if (i % 2 == 1) keep_order();
  }
}

// COPY_A, COPY_B: elements of one copy of a kMnMajor operand: V where its lines allow it, else 1.
template <class T, class C, Major A_MAJOR, Major B_MAJOR, int COPY_A, int COPY_B, int BM, int BN, int BK,
          int STAGES>
__global__ void __launch_bounds__(kPipelinedThreads, ThreadTile<T, BM, BN>::kBlocks)
    gemm_pipelined(GemmProblem problem, const T* __restrict__ a, const T* __restrict__ b,
                   const T* __restrict__ bias, C* c) {
  typedef ThreadTile<T, BM, BN> Own;
  TileCopies<T, A_MAJOR, COPY_A, BM, BK, kPipelinedThreads> copies_a;
  TileCopies<T, B_MAJOR, COPY_B, BN, BK, kPipelinedThreads> copies_b;
  constexpr int kPitchA = copies_a.kPitch, kPitchB = copies_b.kPitch;
  constexpr int kStage = BK * (kPitchA + kPitchB);

  PYCONV_DYNAMIC_SHARED(T, tiles);  // [STAGES][kStage]: A's tile [BK][kPitchA], then B's [BK][kPitchB]

  const GemmBlock block = gemm_block<BM, BN>(problem, blockIdx.x);
  a += matrix_offset(problem.a, block.batch);
  b += matrix_offset(problem.b, block.batch);
  const int own_m = Own::first_row(threadIdx.x), own_n = Own::first_column(threadIdx.x);

  begin(copies_a, a, problem.a, block.m0, problem.gemm_m, block.k_begin);
  begin(copies_b, b, problem.b, block.n0, problem.gemm_n, block.k_begin);
  auto start_copies = [&](int k, int stage) {  // of the tile at k, into that place
    if (k < block.k_end) {
      T* tile = tiles + stage * kStage;
      start(copies_a, problem.a, tile, k, block.k_end);
      start(copies_b, problem.b, tile + BK * kPitchA, k, block.k_end);
    }
    cp_async_commit();  // an empty group too: the wait below counts groups
  };
  PYCONV_UNROLL
  for (int i = 0; i < STAGES - 1; ++i) start_copies(block.k_begin + i * BK, i);

  int k0 = block.k_begin, stage = 0;
  bool add = problem.accumulate;
  do {  // once even if there are no terms: C is then 0 or the bias
    T sum[Own::kRows][Own::kColumns] = {};
    for (const int end = chain_end<C>(k0, block.k_end); k0 < end; k0 += BK) {
      cp_async_wait<STAGES - 2>();  // this thread's copies of the tile at k0 have arrived,
      __syncthreads();              // those of the others too, and nobody reads the tile before it any more:
      start_copies(k0 + (STAGES - 1) * BK, stage == 0 ? STAGES - 1 : stage - 1);  // into its place
      const T* tile = tiles + stage * kStage;
      multiply_tile<T, BM, BN, BK, kPitchA, kPitchB>(tile + own_m, tile + BK * kPitchA + own_n, sum);
      stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
    store_tile<BM, BN>(problem, bias, c, sum, add);
    add = true;
  } while (k0 < block.k_end);
}

}  // namespace pyconv
