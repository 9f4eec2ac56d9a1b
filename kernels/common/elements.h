// The element types of every kernel, CUDA and CPU: float, double, and the two 16-bit formats as plain bit patterns.
//
//   Half      IEEE binary16:  1 sign, 5 exponent, 10 fraction bits
//   BFloat16  the upper half of a float: 1 sign, 8 exponent, 7 fraction bits
//
// Nothing is computed in 16 bits: an element is widened when loaded, sums are kept in Accumulator<T>, and the result
// is rounded once, to nearest even, when stored. How is said here in bits, for the processors without instructions
// for it and for the emulator.
#pragma once
#if !defined(__CUDACC__) && !defined(__CUDACC_RTC__)
#include <cstdint>
#endif

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

#if !defined(__CUDACC__) && !defined(__CUDACC_RTC__)

// Internal linkage: the copies that are compiled for different instruction sets never mix at link time.
static inline uint32_t float_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}
static inline float float_of_bits(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

static inline float half_to_float(Half h) {
  const uint32_t sign = uint32_t(h.bits & 0x8000u) << 16;
  const uint32_t exponent = (h.bits >> 10) & 31u, fraction = h.bits & 0x3ffu;
  if (exponent == 31 && fraction != 0) return float_of_bits(sign | 0x7fc00000u | fraction << 13);  // a quiet NaN
  if (exponent == 31) return float_of_bits(sign | 0x7f800000u);
  if (exponent != 0) return float_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
  const float subnormal = float(fraction) * 0x1p-24f;  // exact: 10 bits
  return sign ? -subnormal : subnormal;
}

// A NaN keeps its sign and the upper bits of its fraction, and becomes quiet, as with x86's instructions.
static inline Half float_to_half(float value) {
  const uint32_t bits = float_bits(value), magnitude = bits & 0x7fffffffu;
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000u);
  if (magnitude > 0x7f800000u) return Half{uint16_t(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu))};
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

static inline BFloat16 float_to_bfloat16(float value) {
  const uint32_t bits = float_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return BFloat16{uint16_t(bits >> 16 | 0x40u)};
  return BFloat16{uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

#endif

}  // namespace pyconv
