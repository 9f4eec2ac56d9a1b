// mma.sync: a warp multiplies small matrices on the tensor cores, d[m, n] += sum over k of a[m, k] * b[k, n].
//
//   mma_m16n8k16_f16    Half,     sums in float      16 x 8 x 16
//   mma_m16n8k16_bf16   BFloat16, sums in float      16 x 8 x 16
//   mma_m16n8k8_tf32    tf32,     sums in float      16 x 8 x 8
//   mma_m8n8k4_f64      double                        8 x 8 x 4           all since sm_80
//
// The matrices lie in registers, dealt to the 32 lanes. With  g = lane / 4 (0..7)  and  t = lane % 4 (0..3):
//
//   16-bit: a register holds two neighbours along k, the lower k in its low half
//
//      A (16 x 16)    k: 2t, 2t+1   2t+8, 2t+9          B (16 x 8)           n: g
//        m: g             a[0]         a[2]               k: 2t,   2t+1     b[0]
//        m: g + 8         a[1]         a[3]               k: 2t+8, 2t+9     b[1]
//
//   tf32: a register holds one element
//
//      A (16 x 8)     k: t             t + 4            B (8 x 8)            n: g
//        m: g             a[0]         a[2]               k: t              b[0]
//        m: g + 8         a[1]         a[3]               k: t + 4          b[1]
//
//   both: the sums
//
//      D (16 x 8)     n: 2t            2t + 1
//        m: g             d[0]         d[1]
//        m: g + 8         d[2]         d[3]
//
//   double, one element each of A (8 x 4) and B (4 x 8), two sums of D (8 x 8)
//
//      a = (m: g, k: t)       b = (k: t, n: g)       d[0] = (m: g, n: 2t)       d[1] = (m: g, n: 2t + 1)
//
// So the four registers of A are the four 8x8 quadrants that one ldmatrix<4> of row-major A gives (k runs along a
// row of shared memory), and the two of B are one ldmatrix<2> of column-major B. The other major order, 16-bit
// only, is ldmatrix_transposed. See gemm/gemm_tensor.cu.
//
// Sums. Every product of 16-bit or tf32 elements is exact in the tensor core. How the products are added is not
// documented; Fasi, Higham, Mikaitis and Pranesh (Numerical behavior of NVIDIA tensor cores, 2021) found them
// aligned to the largest, added together, and truncated, not rounded, to the accumulator. The host model does as
// they found on an A100: blocks of 8 products (tf32: 4) are added to the sum exactly and then truncated to float.
// On other devices the blocks and the spare bits differ, so no test may ask for more than that bound; sums that
// are exact in float are exact everywhere. Doubles are plain fused multiply-adds.
#pragma once
#include "common/numbers.h"

namespace pyconv {

// The tf32 nearest to a float (ties away from zero), in the upper 19 bits: 1 sign, 8 exponent, 10 fraction bits.
// The tensor core looks at no others; without this the operand would be truncated, twice the error and always
// toward zero.
PYCONV_DEVICE uint32_t round_to_tf32(float value) {
#if defined(PYCONV_EMULATED)
  const uint32_t bits = float_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffe000u;  // NaN: a carry out of its fraction would hide it
  return (bits + 0x1000u) & ~0x1fffu;
#else
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
#endif
}

#if defined(PYCONV_EMULATED)

namespace emulator {

inline float truncated(double sum) {
  const float nearest = float(sum);
  const bool is_too_large = __builtin_fabs(double(nearest)) > __builtin_fabs(sum) && !__builtin_isinf(nearest);
  return is_too_large ? float_of_bits(float_bits(nearest) - 1) : nearest;
}

// The operands of one lane. Elements are numbered within a register from its low bits.
struct MmaOperands {
  uint32_t a[4], b[2];
};
struct HalfElement {
  static float of(uint32_t word, int i) { return widen(Half{uint16_t(word >> 16 * i)}); }
};
struct BFloat16Element {
  static float of(uint32_t word, int i) { return widen(BFloat16{uint16_t(word >> 16 * i)}); }
};
struct Tf32Element {
  static float of(uint32_t word, int) { return float_of_bits(word & ~0x1fffu); }
};

// All three shapes of 16 x 8 sums. A register holds PER_REGISTER elements, and a quadrant is 4 lanes of them
// wide.
template <class Element, int PER_REGISTER>
PYCONV_EMULATED_MODEL inline void mma_m16n8(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  constexpr int kQuadrant = 4 * PER_REGISTER, kDepth = 2 * kQuadrant;
  const Exchange<MmaOperands> operands(MmaOperands{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
  const int group = lane() / 4, member = lane() % 4;

  double rows[2][kDepth], columns[2][kDepth];  // m: group, group + 8; n: 2*member, 2*member + 1
  for (int t = 0; t < 4; ++t) {
    const MmaOperands& of_rows = operands.of(group * 4 + t);
    for (int i = 0; i < 2; ++i) {
      const MmaOperands& of_column = operands.of((2 * member + i) * 4 + t);
      for (int quadrant = 0; quadrant < 2; ++quadrant) {
        for (int element = 0; element < PER_REGISTER; ++element) {
          const int k = quadrant * kQuadrant + t * PER_REGISTER + element;
          rows[i][k] = Element::of(of_rows.a[i + 2 * quadrant], element);
          columns[i][k] = Element::of(of_column.b[quadrant], element);
        }
      }
    }
  }
  for (int i = 0; i < 4; ++i) {
    for (int block = 0; block < kDepth; block += kQuadrant) {
      double sum = d[i];
      for (int k = block; k < block + kQuadrant; ++k) sum += rows[i / 2][k] * columns[i % 2][k];
      d[i] = truncated(sum);
    }
  }
}

struct DoubleOperands {
  double a, b;
};
PYCONV_EMULATED_MODEL inline void mma_m8n8(double (&d)[2], double a, double b) {
  const Exchange<DoubleOperands> operands(DoubleOperands{a, b});
  for (int i = 0; i < 2; ++i) {
    const int m = lane() / 4, n = lane() % 4 * 2 + i;
    for (int k = 0; k < 4; ++k) d[i] = fused(operands.of(m * 4 + k).a, operands.of(n * 4 + k).b, d[i]);
  }
}

}  // namespace emulator

#endif

// d += a * b over 16 elements of k.
PYCONV_DEVICE void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(PYCONV_EMULATED)
  ::pyconv::emulator::mma_m16n8<::pyconv::emulator::HalfElement, 2>(d, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

PYCONV_DEVICE void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(PYCONV_EMULATED)
  ::pyconv::emulator::mma_m16n8<::pyconv::emulator::BFloat16Element, 2>(d, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// d += a * b over 8 elements of k, which are tf32 (round_to_tf32).
PYCONV_DEVICE void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(PYCONV_EMULATED)
  ::pyconv::emulator::mma_m16n8<::pyconv::emulator::Tf32Element, 1>(d, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// d += a * b over 4 elements of k, in double.
PYCONV_DEVICE void mma_m8n8k4_f64(double (&d)[2], double a, double b) {
#if defined(PYCONV_EMULATED)
  ::pyconv::emulator::mma_m8n8(d, a, b);
#else
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
               : "+d"(d[0]), "+d"(d[1])
               : "d"(a), "d"(b));
#endif
}

}  // namespace pyconv
