// The tensor-core GEMM's fragments: from a tile in shared memory to registers, and into mma.sync.
//
// A fragment is 16 rows of A, or 16 columns of B, by one step of k: 32 bytes, whatever the type. It is four
// quadrants of 8 x 16 bytes. mma.h deals a quadrant to the 32 lanes in the same way for A and for B, a register
// each; only their order differs: mma.sync takes four consecutive registers of A, and two of B for each 8 columns.
//
//                    k_half 0  k_half 1                         k_half 0  k_half 1
//     A   m_half 0     [0]       [2]            B   n_half 0      [0]       [1]       one mma.sync: b = [0] [1]
//         m_half 1     [1]       [3]                n_half 1      [2]       [3]       the other:    b = [2] [3]
#pragma once
#include "common/ldmatrix.h"
#include "common/mma.h"
#include "gemm/gemm_tensor_tile.h"

namespace pyconv {

enum Operand { kOperandA, kOperandB };

// How a product of two elements is formed. kOneProduct: by one of the tensor core, float as tf32.
// kThreeTf32: float as the sum of two tf32, by three.
enum Arithmetic : int32_t { kOneProduct = 0, kThreeTf32 = 1 };

template <class T>
struct Fragment {
  static constexpr int kDepth = 32 / int(sizeof(T));  // elements of k
  uint32_t quadrant[4];
};
template <>
struct Fragment<double> {
  static constexpr int kDepth = 4;
  double half[2];  // 8 lines by 4 elements of k: a lane holds one
};

// A lane's share of 16 x 16 sums: for each half of n, d[0 .. 3] of mma.sync.
template <class T>
struct Sums {
  Accumulator<T> half[2][4];
};

// The fragment of 16 rows (or columns), those from warp_mn + mn on, and of a step of the tile's k. `mn`, a
// multiple of 16, and `step` are constants. tf32 is yet to be rounded.
template <Operand OPERAND, class T, Major MAJOR, int MN>
PYCONV_DEVICE Fragment<T> load_fragment(const T* tile, int warp_mn, int mn, int step) {
  typedef TensorTile<T, MAJOR, MN> Tile;
  const auto address = [&](int lane_mn, int lane_k, int more_mn, int more_k) {
    const int k = step * Fragment<T>::kDepth + more_k;
    return tile + Tile::first(warp_mn) +
           (MAJOR == kKMajor ? Tile::at(lane_mn, lane_k, mn + more_mn, k)
                             : Tile::at(lane_k, lane_mn + Tile::rest(warp_mn), k, mn + more_mn));
  };
  const auto mn_half = [](int quadrant) { return OPERAND == kOperandA ? quadrant % 2 : quadrant / 2; };
  const auto k_half = [](int quadrant) { return OPERAND == kOperandA ? quadrant / 2 : quadrant % 2; };
  const int lane = int(threadIdx.x) % kWarpSize;
  Fragment<T> fragment;
  if constexpr (Tile::kHasLdmatrix) {
    static_assert(Tile::fills_banks(8, 1), "ldmatrix reads 8 lines of 16 bytes without a bank conflict");
    const int quadrant = lane / 8, line = lane % 8;  // the line whose address this lane gives
    if constexpr (MAJOR == kKMajor)
      ldmatrix(fragment.quadrant, address(mn_half(quadrant) * 8 + line, k_half(quadrant) * Tile::kPiece, 0, 0));
    else
      ldmatrix_transposed(fragment.quadrant, address(mn_half(quadrant) * 8, k_half(quadrant) * 8 + line, 0, 0));
  } else {
    static_assert(Tile::fills_banks(4, 2), "a pass reads 4 lines of 32 bytes without a bank conflict");
    if constexpr (sizeof(T) == 8) {
      for (int i = 0; i < 2; ++i) fragment.half[i] = *address(lane / 4, lane % 4, i * 8, 0);
    } else {
      for (int i = 0; i < 4; ++i)
        fragment.quadrant[i] = float_bits(*address(lane / 4, lane % 4, mn_half(i) * 8, k_half(i) * 4));
    }
  }
  return fragment;
}

// Makes tf32 of the floats that were loaded.
template <class T>
PYCONV_DEVICE void round_fragment(Fragment<T>& fragment) {
  if constexpr (sizeof(T) == 4)
    for (uint32_t& word : fragment.quadrant) word = round_to_tf32(float_of_bits(word));
}

// sums += a * b, by one instruction of 16 x 8 for each half of n (double: two of 8 x 8).
PYCONV_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Half) {
  mma_m16n8k16_f16(d, a, b);
}
PYCONV_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], BFloat16) {
  mma_m16n8k16_bf16(d, a, b);
}
PYCONV_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], float) {
  mma_m16n8k8_tf32(d, a, b);
}

template <class T>
PYCONV_DEVICE void multiply(Sums<T>& sums, const Fragment<T>& a, const Fragment<T>& b) {
  PYCONV_UNROLL
  for (int j = 0; j < 2; ++j) {
    const uint32_t columns[2] = {b.quadrant[2 * j], b.quadrant[2 * j + 1]};
    mma(sums.half[j], a.quadrant, columns, T{});
  }
}
PYCONV_DEVICE void multiply(Sums<double>& sums, const Fragment<double>& a, const Fragment<double>& b) {
  PYCONV_UNROLL
  for (int j = 0; j < 2; ++j) {
    PYCONV_UNROLL
    for (int i = 0; i < 2; ++i) {
      double d[2] = {sums.half[j][2 * i], sums.half[j][2 * i + 1]};
      mma_m8n8k4_f64(d, a.half[i], b.half[j]);
      sums.half[j][2 * i] = d[0], sums.half[j][2 * i + 1] = d[1];
    }
  }
}

// ---- float by three products of tf32
//
//   x = big + small:   big is x in tf32, small what is left, in tf32: 11 + 11 of x's 24 bits, and a sign
//   a*b = a_big*b_big + a_big*b_small + a_small*b_big          a_small*b_small is below float's own rounding
//
// What a tensor core adds it truncates (mma.h), always towards zero, which a long sum would show. So the products of
// one step of k, 8 terms, are added there, the small ones first, and their sum to the rest by an ordinary addition
// that rounds to nearest. An infinite operand gives NaN: its small part is infinity minus infinity.
// After H. Ootomo and R. Yokota, Recovering single precision accuracy from Tensor Cores (2022).

struct SplitFragment {
  Fragment<float> big, small;
};

PYCONV_DEVICE SplitFragment split(const Fragment<float>& fragment) {
  SplitFragment parts;
  PYCONV_UNROLL
  for (int i = 0; i < 4; ++i) {
    const float value = float_of_bits(fragment.quadrant[i]);
    parts.big.quadrant[i] = round_to_tf32(value);
    parts.small.quadrant[i] = round_to_tf32(value - float_of_bits(parts.big.quadrant[i]));
  }
  return parts;
}

PYCONV_DEVICE void multiply(Sums<float>& sums, const SplitFragment& a, const SplitFragment& b) {
  Sums<float> step = {};
  multiply(step, a.small, b.big);
  multiply(step, a.big, b.small);
  multiply(step, a.big, b.big);
  PYCONV_UNROLL
  for (int j = 0; j < 2; ++j) {
    PYCONV_UNROLL
    for (int i = 0; i < 4; ++i) sums.half[j][i] += step.half[j][i];
  }
}

// ---- A warp's step of k: all pairs of fragments

template <Arithmetic ARITHMETIC, class T, int ROWS, int COLUMNS>
PYCONV_DEVICE void multiply_all(Sums<T> (&sums)[ROWS][COLUMNS], const Fragment<T> (&a)[ROWS],
                                const Fragment<T> (&b)[COLUMNS]) {
  if constexpr (ARITHMETIC == kThreeTf32) {
    SplitFragment columns[COLUMNS];
    PYCONV_UNROLL
    for (int j = 0; j < COLUMNS; ++j) columns[j] = split(b[j]);
    PYCONV_UNROLL
    for (int i = 0; i < ROWS; ++i) {
      const SplitFragment rows = split(a[i]);
      PYCONV_UNROLL
      for (int j = 0; j < COLUMNS; ++j) multiply(sums[i][j], rows, columns[j]);
    }
  } else {
    PYCONV_UNROLL
    for (int i = 0; i < ROWS; ++i) {
      PYCONV_UNROLL
      for (int j = 0; j < COLUMNS; ++j) multiply(sums[i][j], a[i], b[j]);
    }
  }
}

}  // namespace pyconv
