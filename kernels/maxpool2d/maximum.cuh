// torch's maximum on the GPU, and the tap that holds it: the rule, for one element and for two 16-bit ones at once.
//
//   a later element of the window wins if it is larger than the best so far, or is a NaN
//
// So the first of equal values stays (-0 equals +0) and of several NaNs the last is the result. The rule is associative
// over runs of taps in row-major order: the best of row 0, then of row 1, ... is the best of the window.
//
// A Rule says what is compared: a Word holds kLanes elements, a Hit says which of them win, a Tap is where they came
// from. OneLane has one element in a register; TwoLanes has two 16-bit elements in one, whose Hit is a mask, so that
// one bitwise instruction selects both values or both taps. It halves the work of 16-bit types, which otherwise would
// not keep up with their smaller bytes (README.md).
#pragma once
#include "common/numbers.h"
#include "common/vector.h"

namespace pyconv {

template <class T>
struct OneLane {
  typedef Accumulator<T> Word;  // exact: a 16-bit element widened and narrowed again is itself
  typedef bool Hit;
  typedef int Tap;
  static constexpr int kLanes = 1;

  PYCONV_DEVICE Word lowest() { return Word(float_of_bits(0xff800000u)); }  // -inf
  PYCONV_DEVICE Tap tap_of(int tap) { return tap; }
  PYCONV_DEVICE Tap taps_of(int tap, int) { return tap; }
  PYCONV_DEVICE int tap_in(Tap tap, int) { return tap; }
  PYCONV_DEVICE Hit beats(Word later, Word best) { return later > best || later != later; }
  template <class Value>
  PYCONV_DEVICE Value choose(Hit hit, Value yes, Value no) {
    return hit ? yes : no;
  }
};

#if defined(PYCONV_EMULATED) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900)
#define PYCONV_WIDE_BFLOAT16_COMPARISON  // comparisons of bfloat16 pairs came with sm_90
#endif

PYCONV_DEVICE float lane_of(Half, uint32_t word, int lane) { return widen(Half{uint16_t(word >> 16 * lane)}); }
PYCONV_DEVICE float lane_of(BFloat16, uint32_t word, int lane) {
  return float_of_bits(lane ? word & 0xffff0000u : word << 16);
}
// Which lanes of `later` beat those of `best`, as ones, by widening.
template <class T>
PYCONV_DEVICE uint32_t beats_widened(uint32_t later, uint32_t best) {
  const bool low = OneLane<T>::beats(lane_of(T{}, later, 0), lane_of(T{}, best, 0));
  const bool high = OneLane<T>::beats(lane_of(T{}, later, 1), lane_of(T{}, best, 1));
  return (low ? 0x0000ffffu : 0) | (high ? 0xffff0000u : 0);
}
PYCONV_DEVICE uint32_t beats_pairwise(Half, uint32_t later, uint32_t best) {
#if defined(PYCONV_EMULATED)
  return beats_widened<Half>(later, best);
#else
  uint32_t larger, nan;
  asm("set.gt.u32.f16x2 %0, %1, %2;" : "=r"(larger) : "r"(later), "r"(best));
  asm("set.nan.u32.f16x2 %0, %1, %1;" : "=r"(nan) : "r"(later));
  return larger | nan;
#endif
}
PYCONV_DEVICE uint32_t beats_pairwise(BFloat16, uint32_t later, uint32_t best) {
#if defined(PYCONV_WIDE_BFLOAT16_COMPARISON)
  return beats_widened<BFloat16>(later, best);
#else
  uint32_t larger, nan;
  asm("set.gt.u32.bf16x2 %0, %1, %2;" : "=r"(larger) : "r"(later), "r"(best));
  asm("set.nan.u32.bf16x2 %0, %1, %1;" : "=r"(nan) : "r"(later));
  return larger | nan;
#endif
}

// Lane 0 in the low 16 bits, as in memory. A tap, too, has 16 bits.
template <class T>
struct TwoLanes {
  static_assert(sizeof(T) == 2, "two elements of a Word are 16 bits each");
  typedef uint32_t Word, Hit, Tap;
  static constexpr int kLanes = 2;

  PYCONV_DEVICE Word lowest_of(Half) { return 0xfc00fc00u; }
  PYCONV_DEVICE Word lowest_of(BFloat16) { return 0xff80ff80u; }
  PYCONV_DEVICE Word lowest() { return lowest_of(T{}); }  // -inf, -inf
  PYCONV_DEVICE Tap tap_of(int tap) { return taps_of(tap, tap); }
  PYCONV_DEVICE Tap taps_of(int low, int high) { return uint32_t(low) | uint32_t(high) << 16; }
  PYCONV_DEVICE int tap_in(Tap tap, int lane) { return int(tap >> 16 * lane & 0xffffu); }
  PYCONV_DEVICE Hit beats(Word later, Word best) { return beats_pairwise(T{}, later, best); }
  PYCONV_DEVICE uint32_t choose(Hit hit, uint32_t yes, uint32_t no) { return (hit & yes) | (~hit & no); }
};

// The rule for kElements elements side by side.
template <class T, bool kPaired>
struct RuleOf {
  typedef OneLane<T> type;
};
template <class T>
struct RuleOf<T, true> {
  typedef TwoLanes<T> type;
};
template <class T, int kElements>
using Rule = typename RuleOf<T, sizeof(T) == 2 && (kElements > 1)>::type;

template <class T, int kElements>
constexpr int kWordsOf = kElements / Rule<T, kElements>::kLanes;

// kElements values as words.
template <class T, int kElements>
struct Values {
  typename Rule<T, kElements>::Word word[kWordsOf<T, kElements>];
};

template <class T, int kElements>
PYCONV_DEVICE Values<T, kElements> lowest_values() {
  Values<T, kElements> values;
  PYCONV_UNROLL
  for (int i = 0; i < kWordsOf<T, kElements>; ++i) values.word[i] = Rule<T, kElements>::lowest();
  return values;
}

// In one memory instruction, for which `at` must be aligned.
template <int kElements, class T>
PYCONV_DEVICE Values<T, kElements> load_values(const T* at) {
  Values<T, kElements> values;
  if constexpr (Rule<T, kElements>::kLanes == 2) {
    const auto words = load_vector<kElements / 2>(reinterpret_cast<const uint32_t*>(at));
    PYCONV_UNROLL
    for (int i = 0; i < kElements / 2; ++i) values.word[i] = words.element[i];
  } else {
    const auto elements = load_vector<kElements>(at);
    PYCONV_UNROLL
    for (int i = 0; i < kElements; ++i) values.word[i] = widen(elements.element[i]);
  }
  return values;
}
template <int kElements, class T>
PYCONV_DEVICE void store_values(T* at, const Values<T, kElements>& values) {
  if constexpr (Rule<T, kElements>::kLanes == 2) {
    Vector<uint32_t, kElements / 2> words;
    PYCONV_UNROLL
    for (int i = 0; i < kElements / 2; ++i) words.element[i] = values.word[i];
    store_vector(reinterpret_cast<uint32_t*>(at), words);
  } else {
    Vector<T, kElements> elements;
    PYCONV_UNROLL
    for (int i = 0; i < kElements; ++i) elements.element[i] = narrow<T>(values.word[i]);
    store_vector(at, elements);
  }
}

// kElements maxima and, if kTaps, the taps they come from.
template <class T, int kElements, bool kTaps>
struct Best {
  Values<T, kElements> value;
  typename Rule<T, kElements>::Tap tap[kTaps ? kWordsOf<T, kElements> : 1];
};

template <bool kTaps, class T, int kElements>
PYCONV_DEVICE Best<T, kElements, kTaps> start(const Values<T, kElements>& values,
                                              typename Rule<T, kElements>::Tap tap) {
  Best<T, kElements, kTaps> best;
  best.value = values;
  if constexpr (kTaps)
    for (auto& each : best.tap) each = tap;
  return best;
}
template <class T, int kElements, bool kTaps>
PYCONV_DEVICE void add_taps(Best<T, kElements, kTaps>& best, int offset) {
  if constexpr (kTaps)
    for (auto& tap : best.tap) tap += Rule<T, kElements>::tap_of(offset);
}

// `later` holds the best of taps after those of `best`; its own taps count from `offset`.
template <class T, int kElements, bool kTaps>
PYCONV_DEVICE void take(Best<T, kElements, kTaps>& best, const Best<T, kElements, kTaps>& later, int offset) {
  typedef Rule<T, kElements> R;
  PYCONV_UNROLL
  for (int i = 0; i < kWordsOf<T, kElements>; ++i) {
    const auto hit = R::beats(later.value.word[i], best.value.word[i]);
    best.value.word[i] = R::choose(hit, later.value.word[i], best.value.word[i]);
    if constexpr (kTaps) best.tap[i] = R::choose(hit, later.tap[i] + R::tap_of(offset), best.tap[i]);
  }
}
// The same for values that are all of one tap.
template <class T, int kElements, bool kTaps>
PYCONV_DEVICE void take(Best<T, kElements, kTaps>& best, const Values<T, kElements>& later, int tap) {
  typedef Rule<T, kElements> R;
  PYCONV_UNROLL
  for (int i = 0; i < kWordsOf<T, kElements>; ++i) {
    const auto hit = R::beats(later.word[i], best.value.word[i]);
    best.value.word[i] = R::choose(hit, later.word[i], best.value.word[i]);
    if constexpr (kTaps) best.tap[i] = R::choose(hit, R::tap_of(tap), best.tap[i]);
  }
}

}  // namespace pyconv
