// One vector type for every instruction set: GCC's and Clang's vector extensions, plus the few
// operations they lack. Width follows PYCONV_ISA, so one template serves baseline, AVX2 and AVX-512.
//
//   Vec<float> acc = {};  acc += broadcast(a) * load(b);    // contracts to one FMA (-ffp-contract=fast)
//
// Vec<T> holds the sums of elements T: of 16-bit elements it is a vector of float, which the loads widen to and the
// stores round back from (narrow.h). load_partial / store_partial touch only the first `count` elements: a row's tail
// is never read or written past its end.
#pragma once
#include "narrow.h"

namespace pyconv {
namespace PYCONV_ISA {

template <class T>
inline Vec<T> load(const T* from) {
  if constexpr (sizeof(T) == 2) {
    Bits16 bits;
    std::memcpy(&bits, from, sizeof bits);
    return widened<T>(bits);
  } else {
    Vec<T> value;
    std::memcpy(&value, from, sizeof value);  // one unaligned vector load
    return value;
  }
}

template <class T>
inline void store(T* to, const Vec<T>& value) {
  if constexpr (sizeof(T) == 2) {
    const Bits16 bits = narrowed<T>(value);
    std::memcpy(to, &bits, sizeof bits);
  } else {
    std::memcpy(to, &value, sizeof value);
  }
}

template <class T>
inline Vec<T> broadcast(T scalar) {
  return widen(scalar) - Vec<T>{};  // x - 0 is x for every x and costs nothing; 0 + x would have to turn -0 into 0
}

#if defined(__AVX512F__)
// The lanes [begin, end) as a mask register; 0 <= begin, end <= kLanes.
template <class T>
using LaneMask = std::conditional_t<sizeof(Accumulator<T>) == 4, __mmask16, __mmask8>;
template <class T>
inline LaneMask<T> lane_mask(int begin, int end) {
  return LaneMask<T>(((1u << end) - 1) & ~((1u << begin) - 1));
}

// from[lane] for the lanes of the mask, 0 in the others, whose memory is not touched.
template <class T>
inline Vec<T> load_masked(const T* from, LaneMask<T> mask) {
  if constexpr (sizeof(T) == 2) {
    return widened<T>((Bits16)_mm256_maskz_loadu_epi16(mask, from));
  } else if constexpr (sizeof(T) == 4) {
    return (Vec<T>)_mm512_maskz_loadu_ps(mask, from);
  } else {
    return (Vec<T>)_mm512_maskz_loadu_pd(mask, from);
  }
}
#endif

// Lanes begin <= lane < end from memory (0 <= begin, end <= kLanes), 0 in the others, whose memory is not touched.
template <class T>
inline Vec<T> load_range(const T* from, int begin, int end) {
#if defined(__AVX512F__)
  return load_masked(from, lane_mask<T>(begin, end));
#else
  if (begin == 0 && end == kLanes<T>) return load(from);
  if constexpr (sizeof(T) == 2) {
    Bits16 bits = {};
    for (int lane = begin; lane < end; ++lane) bits[lane] = from[lane].bits;
    return widened<T>(bits);
  } else {
    Vec<T> value = {};
    for (int lane = begin; lane < end; ++lane) value[lane] = from[lane];
    return value;
  }
#endif
}

// The first `count` elements from memory (0 <= count <= kLanes), 0 in the other lanes.
template <class T>
inline Vec<T> load_partial(const T* from, int count) {
  return load_range(from, 0, count);
}

template <class T>
inline void store_partial(T* to, const Vec<T>& value, int count) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 2) {
    _mm256_mask_storeu_epi16(to, lane_mask<T>(0, count), (__m256i)narrowed<T>(value));
  } else if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(to, lane_mask<T>(0, count), (__m512)value);
  } else {
    _mm512_mask_storeu_pd(to, lane_mask<T>(0, count), (__m512d)value);
  }
#else
  if constexpr (sizeof(T) == 2) {
    const Bits16 bits = narrowed<T>(value);
    for (int lane = 0; lane < count; ++lane) to[lane].bits = bits[lane];
  } else {
    for (int lane = 0; lane < count; ++lane) to[lane] = value[lane];
  }
#endif
}

// to[i] = from[i], widened or rounded, for i < count.
template <class T>
inline void widen_run(const T* from, int64_t count, Accumulator<T>* to) {
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) store(to + i, load(from + i));
  if (i < count) store_partial(to + i, load_partial(from + i, int(count - i)), int(count - i));
}
template <class T>
inline void narrow_run(const Accumulator<T>* from, int64_t count, T* to) {
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) store<T>(to + i, load(from + i));
  if (i < count) store_partial<T>(to + i, load_partial(from + i, int(count - i)), int(count - i));
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
inline Accumulator<T> horizontal_sum(const Vec<T>& value) {
  Accumulator<T> lanes[kLanes<T>];
  store(lanes, value);
  for (int half = kLanes<T> / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  return lanes[0];
}

}  // namespace PYCONV_ISA
}  // namespace pyconv
