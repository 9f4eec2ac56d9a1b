// nchw, 16-bit elements: two neighbours along q in the two lanes of a word.
//
// Where rows are whole words (w even), x is read in words of two elements. The kStride + kS elements under a pair of
// windows begin at the first or second element of a word, as pad_left is even or odd (kBegin 0 or 1). The word of a tap
// has its two elements, kStride apart: put together by one PRMT, or as it was read where they lie side by side.
//
//   kS 3, kStride 2, kBegin 1     read  . a | b c | d e      tap 0 = a c,  tap 1 = b d,  tap 2 = c e
//
// Where w is odd, rows begin anywhere in a word, and x is read element by element (kBegin kUnaligned).
#pragma once
#include "maxpool2d/items.cuh"
#include "maxpool2d/maximum.cuh"

namespace pyconv {

template <int kLayout, int kElements>
constexpr bool kIsPair = kLayout == kNchw && kElements == 2;

constexpr int kUnaligned = 2;

// Elements `first` and `second` of words in memory order.
template <int kWords>
PYCONV_DEVICE uint32_t two_of(const uint32_t (&words)[kWords], int first, int second) {
  const uint32_t low = words[first / 2], high = words[second / 2];
  if (first % 2 == 0 && second == first + 1) return low;
#if defined(PYCONV_EMULATED)
  return (first % 2 ? low >> 16 : low & 0xffffu) | (second % 2 ? high & 0xffff0000u : high << 16);
#else
  return __byte_perm(low, high, (first % 2 ? 0x32 : 0x10) | (second % 2 ? 0x7600 : 0x5400));
#endif
}

// The taps of one row of windows. `row` is the element at column w, the windows' first, in a row that is inside the
// image or not.
template <class T, int kS, int kStride, int kBegin>
PYCONV_DEVICE void load_pairs(const T* row, bool inside, int w, int w_extent, Values<T, 2> (&taps)[kS]) {
  if constexpr (kBegin == kUnaligned) {
    constexpr int kElements = kStride + kS;
    uint32_t elements[kElements];
    PYCONV_UNROLL
    for (int i = 0; i < kElements; ++i)
      elements[i] = inside && is_inside(w + i, w_extent) ? row[i].bits : TwoLanes<T>::lowest();
    PYCONV_UNROLL
    for (int s = 0; s < kS; ++s) {
      const uint32_t lanes[2] = {elements[s], elements[s + kStride]};
      taps[s].word[0] = two_of(lanes, 0, 2);
    }
  } else {
    constexpr int kWords = (kStride + kS + kBegin + 1) / 2;
    uint32_t words[kWords];
    PYCONV_UNROLL
    for (int i = 0; i < kWords; ++i) {
      const int at = 2 * i - kBegin;
      words[i] = inside && is_inside(w + at, w_extent) ? load_values<2>(row + at).word[0] : TwoLanes<T>::lowest();
    }
    PYCONV_UNROLL
    for (int s = 0; s < kS; ++s) taps[s].word[0] = two_of(words, s + kBegin, s + kBegin + kStride);
  }
}

// Results `word` of columns q and q + 1, of which the second may not exist; a whole word where q_extent is even.
template <class T>
PYCONV_DEVICE void store_pair(T* at, uint32_t word, int q, int q_extent) {
  if (q_extent % 2 == 0) {
    store_values<2>(at, Values<T, 2>{{word}});
  } else {
    at[0] = T{uint16_t(word)};
    if (q + 1 < q_extent) at[1] = T{uint16_t(word >> 16)};
  }
}
template <class Element>
PYCONV_DEVICE void store_pair(Element* at, const Element (&elements)[2], int q, int q_extent) {
  if (q_extent % 2 == 0) {
    store_vector(at, Vector<Element, 2>{{elements[0], elements[1]}});
  } else {
    at[0] = elements[0];
    if (q + 1 < q_extent) at[1] = elements[1];
  }
}

}  // namespace pyconv
