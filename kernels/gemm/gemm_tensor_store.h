// The tensor-core GEMM's epilogue: from a warp's sums to C.
//
// In mma.sync's layout 4 lanes hold 8 neighbours along n, so one store of a warp reaches 8 rows: 64 bytes of each
// if C is double, 32 if it is float, but 16 if it is 16-bit, half of the least that memory writes. So each warp
// turns 16 rows of its sums at a time in shared memory (the stages are free by then) and writes whole rows, 16
// bytes a lane. Nobody but the warp reads what it turned, so no other has to wait. Doubles need none of that and
// go as they are; shared memory would not hold as many.
#pragma once
#include "gemm/gemm_tensor_fragment.h"

namespace pyconv {

// STORE: elements of one access to C, which starts at a multiple of itself in its row.
template <class T, class C, int WM, int WN, int STORE>
struct WarpStore {
  typedef Accumulator<T> Sum;
  static constexpr bool kIsTurned = sizeof(T) < 8;
  static constexpr int kRows = 16;
  // A lane writes two neighbouring sums: 8 rows of 4 lanes are 32 different pairs of banks, in two passes, if
  // each row starts 8 sums further on.
  static constexpr int kPitch = WN + 8;
  static_assert(WN % 32 == 0, "so that kPitch is 8 more than a multiple of the banks");
  static constexpr int kSharedSums = kIsTurned ? kRows * kPitch : 0;  // of a warp

  // The warp has C[m0 .. m0+WM, n0 .. n0+WN]; `bias` and `c` are those of the product. With `add`, C holds an
  // earlier part of the sums.
  PYCONV_DEVICE void store(const GemmProblem& problem, const Sums<T> (&sums)[WM / 16][WN / 16], Sum* shared,
                           int m0, int n0, const T* bias, bool add, C* c) {
    const int lane = recomputed(int(threadIdx.x) % kWarpSize), lane_row = lane / 4, lane_column = lane % 4 * 2;
    PYCONV_UNROLL
    for (int i = 0; i < WM / 16; ++i) {
      PYCONV_UNROLL
      for (int quadrant = 0; quadrant < WN / 16 * 4; ++quadrant) {  // 8 x 8 sums
        const int row = quadrant % 2 * 8 + lane_row, column = quadrant / 2 * 8 + lane_column;
        const Sum* d = &sums[i][quadrant / 4].half[quadrant / 2 % 2][quadrant % 2 * 2];
        const Vector<Sum, 2> pair = {{d[0], d[1]}};
        if constexpr (kIsTurned)
          store_vector<2>(&shared[row * kPitch + column], pair);
        else
          store_row<2>(problem, m0 + i * 16 + row, n0 + column, pair.element, bias, add, c);
      }
      if constexpr (kIsTurned) {
        __syncwarp();
        for (int access = lane; access < kRows * WN / STORE; access += kWarpSize) {
          const int row = access / (WN / STORE), column = access % (WN / STORE) * STORE;
          Sum of_access[STORE];
          load_sums(&shared[row * kPitch + column], of_access);
          store_row<STORE>(problem, m0 + i * 16 + row, n0 + column, of_access, bias, add, c);
        }
        __syncwarp();  // before the next 16 rows overwrite these
      }
    }
  }

 private:
  PYCONV_DEVICE void load_sums(const Sum* shared, Sum (&sums)[STORE]) {
    constexpr int kLoad = STORE < kVector16<Sum> ? STORE : kVector16<Sum>;
    PYCONV_UNROLL
    for (int i = 0; i < STORE; i += kLoad) {
      const Vector<Sum, kLoad> part = load_vector<kLoad>(&shared[i]);
      PYCONV_UNROLL
      for (int j = 0; j < kLoad; ++j) sums[i + j] = part.element[j];
    }
  }

  // COUNT neighbours of row m, those that exist.
  template <int COUNT>
  PYCONV_DEVICE void store_row(const GemmProblem& problem, int m, int n, const Sum* sums, const T* bias, bool add,
                               C* c) {
    if (m >= problem.gemm_m) return;
    C* const row = c + line_offset(problem.c, m);
    if (COUNT == STORE && n + COUNT <= problem.gemm_n) {
      C* const to = row + place_offset(problem.c, n);
      Vector<C, COUNT> results;
      if (add) results = load_vector<COUNT>(to);
      PYCONV_UNROLL
      for (int i = 0; i < COUNT; ++i) store_sum(problem, bias, m, n + i, sums[i], add, &results.element[i]);
      store_vector<COUNT>(to, results);
      return;
    }
    PYCONV_UNROLL
    for (int i = 0; i < COUNT; ++i)
      if (n + i < problem.gemm_n)
        store_sum(problem, bias, m, n + i, sums[i], add, row + place_offset(problem.c, n + i));
  }
};

}  // namespace pyconv
