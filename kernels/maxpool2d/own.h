// The sum one vector of dx collects: dx += dy in the lanes whose place the argmax names.
//
// dx is owned, not scattered to: each element looks at the windows that cover it. That vectorises, and since
// adding 0 changes nothing, the sum is the one a scatter in row-major order of (p, q) would give, to the bit.
// An argmax that lies outside its window (a caller may pass any) is seen by no owner, so the hits are counted:
// fewer hits than places inside the plane means strays, and the scatter itself must be run.
#pragma once
#include "units.h"

namespace pyconv {
namespace PYCONV_ISA {

// Windows of more taps than this are scattered: an owner's work grows with r*s, a scatter's does not.
constexpr int64_t kCollectTaps = 16;

template <class T>
struct Owned {
  Vec<T> sum = {};
  Places<T> hits = {};

  void collect(const Places<T>& argmax, const Places<T>& place, const Vec<T>& dy) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      const __mmask16 hit = _mm512_cmpeq_epi32_mask((__m512i)argmax, (__m512i)place);
      sum = (Vec<T>)_mm512_mask_add_ps((__m512)sum, hit, (__m512)sum, (__m512)dy);
      hits = (Places<T>)_mm512_mask_add_epi32((__m512i)hits, hit, (__m512i)hits, _mm512_set1_epi32(1));
    } else {
      const __mmask8 hit = _mm512_cmpeq_epi64_mask((__m512i)argmax, (__m512i)place);
      sum = (Vec<T>)_mm512_mask_add_pd((__m512d)sum, hit, (__m512d)sum, (__m512d)dy);
      hits = (Places<T>)_mm512_mask_add_epi64((__m512i)hits, hit, (__m512i)hits, _mm512_set1_epi64(1));
    }
#else
    const Places<T> hit = argmax == place;
    sum += (Vec<T>)(hit & (Places<T>)dy);
    hits -= hit;
#endif
  }
};

template <class T>
inline int64_t total_hits(const Places<T>& hits) {
  int64_t total = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) total += hits[lane];
  return total;
}

// Places that name an element of the plane, among `count`.
inline int64_t places_inside(const int32_t* argmax, int64_t count, int64_t plane) {
  constexpr int64_t kChunk = 4096;  // keeps the partial count in 32 bits, which vectorises twice as wide
  int64_t total = 0;
  for (int64_t begin = 0; begin < count; begin += kChunk) {
    const int64_t end = begin + kChunk < count ? begin + kChunk : count;
    uint32_t partial = 0;
    for (int64_t i = begin; i < end; ++i) partial += uint32_t(argmax[i]) < uint32_t(plane);
    total += partial;
  }
  return total;
}

// The windows [begin, end) along one axis that may cover element `at`; with dilation check tap_of, too.
struct Covering {
  int64_t begin, end;
};
inline Covering covering(int64_t at, int64_t pad, int64_t size, int64_t stride, int64_t dilation, int64_t count) {
  const int64_t last = at + pad, first = last - (size - 1) * dilation;
  const int64_t end = last / stride + 1;
  return {first > 0 ? (first + stride - 1) / stride : 0, end < count ? end : count};
}

}  // namespace PYCONV_ISA
}  // namespace pyconv
