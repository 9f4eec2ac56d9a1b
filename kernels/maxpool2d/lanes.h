// Sets of lanes, and what pooling does with them: compare as torch does, load and store only lanes that exist,
// split a row into its even and odd elements.
//
// A set of lanes is a mask register on AVX-512 and a vector of all-ones elements elsewhere. Places (argmax)
// travel in integer lanes as wide as T, so that one set selects among values and places alike.
#pragma once
#include <limits>
#include <utility>

#include "common/simd.h"

namespace pyconv {
namespace PYCONV_ISA {

template <class T>
constexpr T kLowest = -std::numeric_limits<T>::infinity();

template <class T>
using Places = Mask<T>;
template <class T>
using Place = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;  // one lane of Places<T>
#if defined(__AVX512F__)
template <class T>
using Lanes = std::conditional_t<sizeof(T) == 4, __mmask16, __mmask8>;
#else
template <class T>
using Lanes = Mask<T>;
#endif

template <class T>
inline Places<T> broadcast_place(int64_t place) {
  return Places<T>{} + Place<T>(place);
}

// 0, 1, 2, ...
template <class T>
inline Places<T> lane_numbers() {
  Places<T> numbers = {};
  for (int lane = 0; lane < kLanes<T>; ++lane) numbers[lane] = lane;
  return numbers;
}

// The lanes in [begin, end); either bound may lie anywhere.
template <class T>
inline Lanes<T> lanes_between(int64_t begin, int64_t end) {
  const int first = int(begin < 0 ? 0 : begin > kLanes<T> ? kLanes<T> : begin);
  const int last = int(end < 0 ? 0 : end > kLanes<T> ? kLanes<T> : end);
#if defined(__AVX512F__)
  return Lanes<T>(((1u << last) - 1) & ~((1u << first) - 1));
#else
  const Places<T> numbers = lane_numbers<T>();
  return (numbers >= broadcast_place<T>(first)) & (numbers < broadcast_place<T>(last));
#endif
}

template <class T>
inline Vec<T> choose(Lanes<T> lanes, const Vec<T>& yes, const Vec<T>& no) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return (Vec<T>)_mm512_mask_blend_ps(lanes, (__m512)no, (__m512)yes);
  } else {
    return (Vec<T>)_mm512_mask_blend_pd(lanes, (__m512d)no, (__m512d)yes);
  }
#else
  return lanes ? yes : no;
#endif
}

template <class T>
inline Places<T> choose_places(Lanes<T> lanes, const Places<T>& yes, const Places<T>& no) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return (Places<T>)_mm512_mask_blend_epi32(lanes, (__m512i)no, (__m512i)yes);
  } else {
    return (Places<T>)_mm512_mask_blend_epi64(lanes, (__m512i)no, (__m512i)yes);
  }
#else
  return lanes ? yes : no;
#endif
}

// torch's rule for a later element of the window: it wins if it is larger or NaN. So the first of equals
// (-0 equals +0) stays, and of several NaNs the last one is the result.
template <class T>
inline Lanes<T> beats(const Vec<T>& later, const Vec<T>& best) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return _mm512_cmp_ps_mask((__m512)later, (__m512)best, _CMP_GT_OQ) |
           _mm512_cmp_ps_mask((__m512)later, (__m512)later, _CMP_UNORD_Q);
  } else {
    return _mm512_cmp_pd_mask((__m512d)later, (__m512d)best, _CMP_GT_OQ) |
           _mm512_cmp_pd_mask((__m512d)later, (__m512d)later, _CMP_UNORD_Q);
  }
#else
  return (later > best) | (later != later);
#endif
}

// choose(beats(later, best), later, best) in two instructions: x86's max(a, b) is a > b ? a : b, so only a NaN
// in `later` needs care.
template <class T>
inline Vec<T> larger(const Vec<T>& best, const Vec<T>& later) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    const __m512 a = (__m512)later, b = (__m512)best;
    return (Vec<T>)_mm512_mask_max_ps(a, _mm512_cmp_ps_mask(a, a, _CMP_ORD_Q), a, b);
  } else {
    const __m512d a = (__m512d)later, b = (__m512d)best;
    return (Vec<T>)_mm512_mask_max_pd(a, _mm512_cmp_pd_mask(a, a, _CMP_ORD_Q), a, b);
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    const __m256 a = (__m256)later, b = (__m256)best;
    return (Vec<T>)_mm256_blendv_ps(_mm256_max_ps(a, b), a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  } else {
    const __m256d a = (__m256d)later, b = (__m256d)best;
    return (Vec<T>)_mm256_blendv_pd(_mm256_max_pd(a, b), a, _mm256_cmp_pd(a, a, _CMP_UNORD_Q));
  }
#else
  return choose<T>(beats<T>(later, best), later, best);
#endif
}

// from[lane] for the lanes of the set, `rest` in the others, whose memory is not touched.
template <class T>
inline Vec<T> load_lanes(const T* from, Lanes<T> lanes, T rest) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return (Vec<T>)_mm512_mask_loadu_ps((__m512)broadcast<T>(rest), lanes, from);
  } else {
    return (Vec<T>)_mm512_mask_loadu_pd((__m512d)broadcast<T>(rest), lanes, from);
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    return choose<T>(lanes, (Vec<T>)_mm256_maskload_ps(from, (__m256i)lanes), broadcast<T>(rest));
  } else {
    return choose<T>(lanes, (Vec<T>)_mm256_maskload_pd(from, (__m256i)lanes), broadcast<T>(rest));
  }
#else
  Vec<T> value = broadcast<T>(rest);
  for (int lane = 0; lane < kLanes<T>; ++lane)
    if (lanes[lane]) value[lane] = from[lane];
  return value;
#endif
}

// from[lane * stride] for the lanes of the set, -inf in the others.
template <class T>
inline Vec<T> load_strided(const T* from, int64_t stride, Lanes<T> lanes) {
  Vec<T> value = broadcast<T>(kLowest<T>);
  for (int lane = 0; lane < kLanes<T>; ++lane) {
#if defined(__AVX512F__)
    const bool present = lanes >> lane & 1;
#else
    const bool present = lanes[lane];
#endif
    if (present) value[lane] = from[lane * stride];
  }
  return value;
}

template <class V, int... kLane>
inline V even_lanes(const V& low, const V& high, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(low, high, (2 * kLane)...);
}
template <class V, int... kLane>
inline V odd_lanes(const V& low, const V& high, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(low, high, (2 * kLane + 1)...);
}
template <class V, int kFirst, int... kLane>
inline V zip_lanes(const V& even, const V& odd, std::integer_sequence<int, kLane...>) {
  constexpr int kCount = sizeof...(kLane);
  return __builtin_shufflevector(even, odd, (kFirst + kLane / 2 + (kLane % 2) * kCount)...);
}

// Elements 0, 2, 4, ... and 1, 3, 5, ... of the 2*kLanes elements low:high, and the way back.
template <class T>
inline Vec<T> even(const Vec<T>& low, const Vec<T>& high) {
  return even_lanes(low, high, std::make_integer_sequence<int, kLanes<T>>{});
}
template <class T>
inline Vec<T> odd(const Vec<T>& low, const Vec<T>& high) {
  return odd_lanes(low, high, std::make_integer_sequence<int, kLanes<T>>{});
}
template <class T>
inline Vec<T> zip_low(const Vec<T>& evens, const Vec<T>& odds) {
  return zip_lanes<Vec<T>, 0>(evens, odds, std::make_integer_sequence<int, kLanes<T>>{});
}
template <class T>
inline Vec<T> zip_high(const Vec<T>& evens, const Vec<T>& odds) {
  return zip_lanes<Vec<T>, kLanes<T> / 2>(evens, odds, std::make_integer_sequence<int, kLanes<T>>{});
}

// Places are int32 in memory whatever T is.
template <class T>
struct NarrowOf;
template <>
struct NarrowOf<float> {
  typedef int32_t type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct NarrowOf<double> {
  typedef int32_t type __attribute__((vector_size(kVectorBytes / 2)));
};
template <class T>
using Narrow = typename NarrowOf<T>::type;

// The first `count` places; -1, which no element has, in the other lanes.
template <class T>
inline Places<T> load_places(const int32_t* from, int count) {
  Narrow<T> narrow = Narrow<T>{} - 1;
  if (count == kLanes<T>) {
    std::memcpy(&narrow, from, sizeof narrow);
  } else {
    for (int lane = 0; lane < count; ++lane) narrow[lane] = from[lane];
  }
  return __builtin_convertvector(narrow, Places<T>);
}

// The places from[lane] for the lanes of the set, -1 in the others.
template <class T>
inline Places<T> load_places_lanes(const int32_t* from, Lanes<T> lanes) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return (Places<T>)_mm512_mask_loadu_epi32(_mm512_set1_epi32(-1), lanes, from);
  } else {
    const Narrow<T> narrow = (Narrow<T>)_mm256_mask_loadu_epi32(_mm256_set1_epi32(-1), lanes, from);
    return __builtin_convertvector(narrow, Places<T>);
  }
#else
  Places<T> places = broadcast_place<T>(-1);
  for (int lane = 0; lane < kLanes<T>; ++lane)
    if (lanes[lane]) places[lane] = from[lane];
  return places;
#endif
}

template <class T>
inline void store_places(int32_t* to, const Places<T>& places, int count) {
  const Narrow<T> narrow = __builtin_convertvector(places, Narrow<T>);
  if (count == kLanes<T>) {
    std::memcpy(to, &narrow, sizeof narrow);
  } else {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      _mm512_mask_storeu_epi32(to, __mmask16((1u << count) - 1), (__m512i)narrow);
    } else {
      // Narrowing and storing at once: GCC would fuse the two into a VEXTRACTI32X8 to memory, which faults on
      // lanes that its mask leaves out.
      _mm512_mask_cvtepi64_storeu_epi32(to, __mmask8((1u << count) - 1), (__m512i)places);
    }
#else
    for (int lane = 0; lane < count; ++lane) to[lane] = narrow[lane];
#endif
  }
}

}  // namespace PYCONV_ISA
}  // namespace pyconv
