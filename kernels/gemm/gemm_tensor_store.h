// The tensor-core GEMM's epilogue: from a warp's sums to C.
//
// In mma.sync's layout 4 lanes hold 8 neighbours along n, so one store of a warp reaches 8 rows: 32 bytes of each
// if C is float, but 16 if it is 16-bit, half of the least that memory writes. So each warp turns 16 rows of its
// sums at a time in shared memory (the stages are free by then) and writes whole rows, 16 bytes a lane. Nobody but
// the warp reads what it turned, so no other has to wait. Doubles go as they are: shared memory would not hold as
// many, and next to the time that their products take, stores are nothing. So does a part of a sum that others follow
// (CHAINS): the stages are not free then, and it is float, whose sectors are whole as they are.
#pragma once
#include "gemm/gemm_tensor_fragment.h"

namespace pyconv {

template <class T, class C, int WM, int WN, Activation ACTIVATION = kLinear, bool CHAINS = sizeof(T) == 8>
struct WarpStore {
  typedef Accumulator<T> Sum;
  static constexpr bool kIsTurned = sizeof(T) < 8, kHasChains = CHAINS;
  static constexpr int kRows = 16;
  // A lane writes two neighbouring sums: 8 rows of 4 lanes are 32 different pairs of banks, in two passes, if each
  // row starts 8 sums further on.
  static constexpr int kPitch = WN + 8;
  static_assert(WN % 32 == 0, "so that kPitch is 8 more than a multiple of the banks");
  static constexpr int kSharedSums = kIsTurned ? kRows * kPitch : 0;  // of a warp
  static constexpr int kWidth = kVector16<C>;                         // elements of an access, where C allows it

  PYCONV_DEVICE constexpr bool fits(int threads, int elements) {
    return threads / kWarpSize * kSharedSums * int(sizeof(Sum)) <= elements * int(sizeof(T));
  }
  PYCONV_DEVICE Sum* shared(T* memory, int warp) { return &reinterpret_cast<Sum*>(memory)[warp * kSharedSums]; }

  // The warp has C[m0 .. m0+WM, n0 .. n0+WN]; `bias` and `c` are those of the product, `lines` says where row m of C
  // begins. With `add`, C holds an earlier part of the sums; `is_last` says that no part follows.
  template <class Lines>
  PYCONV_DEVICE void store(const GemmProblem& problem, const Sums<T> (&sums)[WM / 16][WN / 16], Sum* shared,
                           int m0, int n0, const T* bias, bool add, bool is_last, C* c, const Lines& lines) {
    const int lane = recomputed(int(threadIdx.x) % kWarpSize);
    if constexpr (kIsTurned) {
      if (!CHAINS || is_last)
        return store_turned(problem, sums, shared, m0, n0, lane, bias, add, is_last, c, lines);
    }
    if constexpr (CHAINS)
      store_direct(problem, sums, m0 + lane / 4, n0 + lane % 4 * 2, bias, add, is_last, c, lines);
  }

 private:
  template <class Lines>
  PYCONV_DEVICE void store_turned(const GemmProblem& problem, const Sums<T> (&sums)[WM / 16][WN / 16], Sum* shared,
                                  int m0, int n0, int lane, const T* bias, bool add, bool is_last, C* c,
                                  const Lines& lines) {
    const bool is_wide = has_vectors<kWidth>(problem.c) && problem.split_stride % kWidth == 0;
    Sum* const pair = &shared[lane / 4 * kPitch + lane % 4 * 2];  // of this lane, in 8 x 8 sums
    PYCONV_UNROLL
    for (int i = 0; i < WM / 16; ++i) {
      PYCONV_UNROLL
      for (int column = 0; column < WN; column += 8) {
        const Sum* d = sums[i][column / 16].half[column / 8 % 2];
        store_vector<2>(&pair[column], Vector<Sum, 2>{{d[0], d[1]}});
        store_vector<2>(&pair[8 * kPitch + column], Vector<Sum, 2>{{d[2], d[3]}});
      }
      __syncwarp();
      if (is_wide)
        store_rows<kWidth>(problem, m0 + i * 16, n0, shared, lane, bias, add, is_last, c, lines);
      else
        store_rows<1>(problem, m0 + i * 16, n0, shared, lane, bias, add, is_last, c, lines);
      __syncwarp();  // before the next 16 rows overwrite these
    }
  }

  // The 16 turned rows, lanes side by side along n.
  template <int COUNT, class Lines>
  PYCONV_DEVICE void store_rows(const GemmProblem& problem, int m, int n, const Sum* shared, int lane,
                                const T* bias, bool add, bool is_last, C* c, const Lines& lines) {
    constexpr int kLoad = COUNT < kVector16<Sum> ? COUNT : kVector16<Sum>;
    _Pragma("unroll 1") for (int part = lane; part < kRows * WN / COUNT; part += kWarpSize) {
      const int row = part / (WN / COUNT), column = part % (WN / COUNT) * COUNT;
      Sum sums[COUNT];
      PYCONV_UNROLL
      for (int i = 0; i < COUNT; i += kLoad) {
        const Vector<Sum, kLoad> loaded = load_vector<kLoad>(&shared[row * kPitch + column + i]);
        PYCONV_UNROLL
        for (int j = 0; j < kLoad; ++j) sums[i + j] = loaded.element[j];
      }
      store_part<COUNT>(problem, m + row, n + column, sums, bias, add, is_last, c, lines);
    }
  }

  // COUNT neighbours of row m, those that exist, in one access if all do.
  template <int COUNT, class Lines>
  PYCONV_DEVICE void store_part(const GemmProblem& problem, int m, int n, const Sum* sums, const T* bias, bool add,
                                bool is_last, C* c, const Lines& lines) {
    if (m >= problem.gemm_m || n >= problem.gemm_n) return;
    C* const to = c + lines(m) + place_offset(problem.c, n);
    if (n + COUNT <= problem.gemm_n) {
      Vector<C, COUNT> results;
      if (add) results = load_vector<COUNT>(to);
      PYCONV_UNROLL
      for (int i = 0; i < COUNT; ++i)
        store_sum<ACTIVATION>(problem, bias, m, n + i, sums[i], add, &results.element[i], is_last);
      store_vector<COUNT>(to, results);
    } else {  // the last of the row, which is the last of its segment too
      PYCONV_UNROLL
      for (int i = 0; i < COUNT; ++i)
        if (n + i < problem.gemm_n) store_sum<ACTIVATION>(problem, bias, m, n + i, sums[i], add, to + i, is_last);
    }
  }

  // The lane's sums, the first of which is C[m, n].
  template <class Lines>
  PYCONV_DEVICE void store_direct(const GemmProblem& problem, const Sums<T> (&sums)[WM / 16][WN / 16], int m,
                                  int n, const T* bias, bool add, bool is_last, C* c, const Lines& lines) {
    PYCONV_UNROLL
    for (int i = 0; i < WM / 8; ++i) {
      const int row = recomputed(m) + i * 8;
      if (row >= problem.gemm_m) continue;
      C* const line = c + lines(row);
      PYCONV_UNROLL
      for (int j = 0; j < WN / 8 * 2; ++j) {
        const int column = n + j / 2 * 8 + j % 2;
        if (column >= problem.gemm_n) continue;
        store_sum<ACTIVATION>(problem, bias, row, column, sums[i / 2][j / 4].half[j / 2 % 2][i % 2 * 2 + j % 2],
                              add, line + place_offset(problem.c, column), is_last);
        keep_order();
      }
    }
  }
};

}  // namespace pyconv
