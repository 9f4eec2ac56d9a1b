// One vector type for every instruction set: GCC's and Clang's vector extensions, plus the few
// operations they lack. Width follows PYCONV_ISA, so one template serves baseline, AVX2 and AVX-512.
//
//   Vec<float> acc = {};  acc += broadcast(a) * load(b);    // contracts to one FMA (-ffp-contract=fast)
//
// load_partial / store_partial touch only the first `count` elements: a row's tail is never read or
// written past its end.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "cpu.h"

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
using Vec = typename VecOf<T>::type;
template <class T>
using Mask = typename VecOf<T>::mask;  // all ones where true, as comparisons of Vec give
template <class T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));

template <class T>
inline Vec<T> load(const T* from) {
  Vec<T> value;
  std::memcpy(&value, from, sizeof value);  // one unaligned vector load
  return value;
}

template <class T>
inline void store(T* to, const Vec<T>& value) {
  std::memcpy(to, &value, sizeof value);
}

template <class T>
inline Vec<T> broadcast(T scalar) {
  return scalar - Vec<T>{};  // x - 0 is x for every x and costs nothing; 0 + x would have to turn -0 into 0
}

// The first `count` elements from memory (0 <= count <= kLanes), `rest` in the other lanes.
template <class T>
inline Vec<T> load_partial(const T* from, int count, T rest = T(0)) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return (Vec<T>)_mm512_mask_loadu_ps((__m512)broadcast<T>(rest), __mmask16((1u << count) - 1), from);
  } else {
    return (Vec<T>)_mm512_mask_loadu_pd((__m512d)broadcast<T>(rest), __mmask8((1u << count) - 1), from);
  }
#else
  Vec<T> value = broadcast<T>(rest);
  for (int lane = 0; lane < count; ++lane) value[lane] = from[lane];
  return value;
#endif
}

template <class T>
inline void store_partial(T* to, const Vec<T>& value, int count) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(to, __mmask16((1u << count) - 1), (__m512)value);
  } else {
    _mm512_mask_storeu_pd(to, __mmask8((1u << count) - 1), (__m512d)value);
  }
#else
  for (int lane = 0; lane < count; ++lane) to[lane] = value[lane];
#endif
}

// a*b + c, rounded once where the instruction set can. For sums that must have the bits of another loop's: left to
// itself a compiler may contract one of the two and not the other.
template <class T>
inline Vec<T> multiply_add(const Vec<T>& a, const Vec<T>& b, const Vec<T>& c) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
  if constexpr (sizeof(T) == 8) return (Vec<T>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
  if constexpr (sizeof(T) == 8) return (Vec<T>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
  return a * b + c;
#endif
}

// Lane by lane `yes` where the mask is set, else `no`.
template <class T>
inline Vec<T> select(const Mask<T>& mask, const Vec<T>& yes, const Vec<T>& no) {
  return mask ? yes : no;
}

// Sum of all lanes, pairwise, in an order that depends on the width alone.
template <class T>
inline T horizontal_sum(const Vec<T>& value) {
  T lanes[kLanes<T>];
  store(lanes, value);
  for (int half = kLanes<T> / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  return lanes[0];
}

}  // namespace PYCONV_ISA
}  // namespace pyconv
