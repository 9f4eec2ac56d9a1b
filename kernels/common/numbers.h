// The element types of the kernels: float, double, and the two 16-bit formats as plain bit patterns.
//
//   Half      IEEE binary16:  1 sign, 5 exponent, 10 fraction bits
//   BFloat16  the upper half of a float: 1 sign, 8 exponent, 7 fraction bits
//
// Nothing is computed in 16 bits: an element is widened when loaded, sums are kept in Accumulator<T>, and the
// result is rounded once, to nearest even, when stored.
#pragma once
#include "common/cuda.h"

namespace pyconv {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// What sums of T are kept in.
template <class T>
struct AccumulatorOf {
  typedef float type;
};
template <>
struct AccumulatorOf<double> {
  typedef double type;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

#if defined(PYCONV_EMULATED)

PYCONV_DEVICE uint32_t float_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}
PYCONV_DEVICE float float_of_bits(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

PYCONV_DEVICE float widen(Half h) {
  const uint32_t sign = uint32_t(h.bits & 0x8000u) << 16;
  const uint32_t exponent = (h.bits >> 10) & 31u, fraction = h.bits & 0x3ffu;
  if (exponent == 31) return float_of_bits(sign | 0x7f800000u | fraction << 13);
  if (exponent != 0) return float_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
  const float subnormal = float(fraction) * 0x1p-24f;  // exact: 10 bits
  return sign ? -subnormal : subnormal;
}

PYCONV_DEVICE Half narrow_to_half(float value) {
  const uint32_t bits = float_bits(value), magnitude = bits & 0x7fffffffu;
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000u);
  if (magnitude > 0x7f800000u) return Half{uint16_t(0x7fffu)};          // cvt.rn gives this NaN
  if (magnitude >= 0x477ff000u) return Half{uint16_t(sign | 0x7c00u)};  // rounds to infinity
  if (magnitude < 0x38800000u) {                                        // below the least normal, 2^-14
    const float steps = float_of_bits(magnitude) * 0x1p24f;             // exact: a power of two
    uint32_t count = uint32_t(steps);
    const float rest = steps - float(count);
    count += rest > 0.5f || (rest == 0.5f && (count & 1));
    return Half{uint16_t(sign | count)};
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return Half{uint16_t(sign | (rounded - (112u << 23)) >> 13)};
}

PYCONV_DEVICE BFloat16 narrow_to_bfloat16(float value) {
  const uint32_t bits = float_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return BFloat16{uint16_t(0x7fffu)};  // cvt.rn gives this NaN
  return BFloat16{uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

#else

PYCONV_DEVICE uint32_t float_bits(float value) { return __float_as_uint(value); }
PYCONV_DEVICE float float_of_bits(uint32_t bits) { return __uint_as_float(bits); }

PYCONV_DEVICE float widen(Half h) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(h.bits));
  return value;
}
PYCONV_DEVICE Half narrow_to_half(float value) {
  Half h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(value));
  return h;
}
PYCONV_DEVICE BFloat16 narrow_to_bfloat16(float value) {
  BFloat16 b;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(b.bits) : "f"(value));  // sm_80 and later
  return b;
}

#endif

PYCONV_DEVICE float widen(BFloat16 b) { return float_of_bits(uint32_t(b.bits) << 16); }
PYCONV_DEVICE float widen(float value) { return value; }
PYCONV_DEVICE double widen(double value) { return value; }

// narrow<T>(sum): the element that a sum is stored as.
PYCONV_DEVICE void narrow_into(float& element, float value) { element = value; }
PYCONV_DEVICE void narrow_into(double& element, double value) { element = value; }
PYCONV_DEVICE void narrow_into(Half& element, float value) { element = narrow_to_half(value); }
PYCONV_DEVICE void narrow_into(BFloat16& element, float value) { element = narrow_to_bfloat16(value); }
template <class T>
PYCONV_DEVICE T narrow(Accumulator<T> value) {
  T element;
  narrow_into(element, value);
  return element;
}

// a*b + c, rounded once.
PYCONV_DEVICE float fused(float a, float b, float c) {
#if defined(PYCONV_EMULATED)
  return __builtin_fmaf(a, b, c);
#else
  return __fmaf_rn(a, b, c);
#endif
}
PYCONV_DEVICE double fused(double a, double b, double c) {
#if defined(PYCONV_EMULATED)
  return __builtin_fma(a, b, c);
#else
  return __fma_rn(a, b, c);
#endif
}

}  // namespace pyconv
