// The vector type of an element type, and how 16-bit elements become lanes of float and results become 16-bit
// elements again: rounded to nearest even, to infinity beyond the largest, subnormals kept, a NaN always a NaN.
// The bits are those of elements.h on every instruction set.
//
//   Half       F16C's conversions (AVX2 and AVX-512), else the steps of elements.h on whole vectors
//   BFloat16   a shift; back, half of the last place is added, so that the carry rounds
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "cpu.h"
#include "elements.h"

namespace pyconv {
namespace PYCONV_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kVectorRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kVectorRegisters = 16;
#else
constexpr int kVectorBytes = 16;
constexpr int kVectorRegisters = 16;
#endif

template <class T>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t mask __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VecOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef int64_t mask __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename VecOf<Accumulator<T>>::type;
template <class T>
using Mask = typename VecOf<Accumulator<T>>::mask;  // all ones where true, as comparisons of Vec give
template <class T>
constexpr int kLanes = kVectorBytes / int(sizeof(Accumulator<T>));

// kLanes 16-bit elements, and as many 32-bit lanes.
typedef uint16_t Bits16 __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t Bits32 __attribute__((vector_size(kVectorBytes)));

// ---- One element -------------------------------------------------------------------------------------

inline float widen(float element) { return element; }
inline double widen(double element) { return element; }
inline float widen(BFloat16 element) { return float_of_bits(uint32_t(element.bits) << 16); }
inline float widen(Half element) {
#if defined(__F16C__)
  return _cvtsh_ss(element.bits);
#else
  return half_to_float(element);
#endif
}

template <class T>
inline T narrow(Accumulator<T> value) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return float_to_bfloat16(value);
  } else if constexpr (std::is_same_v<T, Half>) {
#if defined(__F16C__)
    return Half{uint16_t(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT))};
#else
    return float_to_half(value);
#endif
  } else {
    return value;
  }
}

// ---- A vector ----------------------------------------------------------------------------------------

inline Bits32 zero_extended(const Bits16& bits) {
#if defined(__AVX512F__)
  return (Bits32)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)bits);
#elif defined(__AVX2__)
  return (Bits32)_mm256_cvtepu16_epi32((__m128i)bits);
#else
  return __builtin_convertvector(bits, Bits32);
#endif
}

inline Bits16 lower_halves(const Bits32& bits) {
#if defined(__AVX512F__)
  return (Bits16)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)bits);
#else
  return __builtin_convertvector(bits, Bits16);
#endif
}

inline Vec<float> half_lanes_to_float(const Bits16& bits) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_maskz_cvtph_ps(0xffff, (__m256i)bits);
#elif defined(__AVX2__)
  return (Vec<float>)_mm256_cvtph_ps((__m128i)bits);
#else
  const Bits32 wide = zero_extended(bits), magnitude = wide & 0x7fffu;
  const Bits32 rebias = Bits32{} + (112u << 23);
  Bits32 value = (magnitude << 13) + rebias;
  value += (Bits32)(magnitude >= 0x7c00u) & rebias;                 // infinity and NaN have the largest exponent
  value |= (Bits32)(magnitude > 0x7c00u) & (Bits32{} + 0x400000u);  // a quiet NaN
  const Vec<float> subnormal = __builtin_convertvector((Mask<float>)magnitude, Vec<float>) * 0x1p-24f;
  const Bits32 is_subnormal = (Bits32)(magnitude < 0x400u);
  value = (is_subnormal & (Bits32)subnormal) | (~is_subnormal & value);
  return (Vec<float>)(value | (wide & 0x8000u) << 16);
#endif
}

inline Bits16 float_lanes_to_half(const Vec<float>& value) {
#if defined(__AVX512F__)
  return (Bits16)_mm512_maskz_cvtps_ph(0xffff, (__m512)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
  return (Bits16)_mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const Bits32 bits = (Bits32)value, magnitude = bits & 0x7fffffffu;
  Bits32 half = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - (112u << 23)) >> 13;
  // 0.5 + value has a last place of 2^-24, which is that of a subnormal half: the addition rounds as wanted.
  const Bits32 steps = (Bits32)((Vec<float>)magnitude + 0.5f) - 0x3f000000u;
  const Bits32 is_subnormal = (Bits32)(magnitude < 0x38800000u), is_infinite = (Bits32)(magnitude >= 0x477ff000u);
  const Bits32 is_nan = (Bits32)(magnitude > 0x7f800000u);
  half = (is_subnormal & steps) | (~is_subnormal & half);
  half = (is_infinite & 0x7c00u) | (~is_infinite & half);
  half |= is_nan & (0x0200u | (magnitude >> 13 & 0x3ffu));
  return lower_halves(half | (bits >> 16 & 0x8000u));
#endif
}

// Where an instruction set has vcvtneps2bf16 it could stand here, but for its subnormals, which it flushes to zero.
inline Bits16 float_lanes_to_bfloat16(const Vec<float>& value) {
  const Bits32 bits = (Bits32)value, upper = bits >> 16;
  const Bits32 rounded = (bits + 0x7fffu + (upper & 1u)) >> 16;
  return lower_halves(value != value ? upper | 0x40u : rounded);
}

template <class T>
inline Vec<T> widened(const Bits16& bits) {
  static_assert(sizeof(T) == 2, "16-bit elements");
  if constexpr (std::is_same_v<T, Half>) {
    return half_lanes_to_float(bits);
  } else {
    return (Vec<T>)(zero_extended(bits) << 16);
  }
}

template <class T>
inline Bits16 narrowed(const Vec<T>& value) {
  static_assert(sizeof(T) == 2, "16-bit elements");
  if constexpr (std::is_same_v<T, Half>) {
    return float_lanes_to_half(value);
  } else {
    return float_lanes_to_bfloat16(value);
  }
}

// ---- Every element type ------------------------------------------------------------------------------

// body(T()) for the element type T of a problem.
template <class Body>
inline auto with_element(int32_t dtype, Body&& body) {
  switch (dtype) {
    case kFloat64: return body(double());
    case kFloat16: return body(Half());
    case kBFloat16: return body(BFloat16());
    default: return body(float());
  }
}

}  // namespace PYCONV_ISA
}  // namespace pyconv
