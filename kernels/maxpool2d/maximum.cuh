// torch's maximum on the GPU, and the tap that holds it: the rule, for one element and for two 16-bit ones at once.
//
//   a later element of the window wins if it is larger than the best so far, or is a NaN
//
// So the first of equal values stays (-0 equals +0) and of several NaNs the last is the result. The rule is associative
// over runs of taps in row-major order: the best of row 0, then of row 1, ... is the best of the window.
//
// Without taps any NaN will do, and half of the comparisons go: the best of the numbers is kept, and beside it a sum of
// magnitudes, which is a NaN if and only if one of them is (infinities of one sign add up to infinity). Additions and
// comparisons have different units, and it is the comparisons' that would be short (README.md).
//
// A Rule says what is compared: a Word holds kLanes elements, a Hit says which of them win, a Tap is where they came
// from. OneLane has one element in a register; TwoLanes has two 16-bit elements in one, whose Hit is a mask, so that
// one bitwise instruction selects both values or both taps.
#pragma once
#include "common/numbers.h"
#include "common/vector.h"

namespace pyconv {

#if defined(PYCONV_EMULATED)
PYCONV_DEVICE float magnitude(float value) { return __builtin_fabsf(value); }
PYCONV_DEVICE double magnitude(double value) { return __builtin_fabs(value); }
#else
PYCONV_DEVICE float magnitude(float value) { return fabsf(value); }
PYCONV_DEVICE double magnitude(double value) { return fabs(value); }
#endif

template <class T>
struct OneLane {
  typedef Accumulator<T> Word;  // exact: a 16-bit element widened and narrowed again is itself
  typedef bool Hit;
  typedef int Tap;
  static constexpr int kLanes = 1, kNoTap = -1;

  PYCONV_DEVICE Word lowest() { return Word(float_of_bits(0xff800000u)); }  // -inf
  PYCONV_DEVICE Tap tap_of(int tap) { return tap; }
  PYCONV_DEVICE Tap taps_of(int tap, int) { return tap; }
  PYCONV_DEVICE int tap_in(Tap tap, int) { return tap; }
  PYCONV_DEVICE Hit larger(Word later, Word best) { return later > best; }
  PYCONV_DEVICE Hit is_nan(Word word) { return word != word; }
  PYCONV_DEVICE Hit either(Hit a, Hit b) { return a || b; }
  PYCONV_DEVICE Word magnitudes(Word a, Word b) { return magnitude(a) + magnitude(b); }
  template <class Value>
  PYCONV_DEVICE Value choose(Hit hit, Value yes, Value no) {
    return hit ? yes : no;
  }
};

// Comparisons and sums of pairs: one instruction each, or by widening where there is none.
template <class T>
struct Widened {
  PYCONV_DEVICE float lane(uint32_t word, int lane) { return widen(T{uint16_t(word >> 16 * lane)}); }
  PYCONV_DEVICE uint32_t larger(uint32_t a, uint32_t b) {
    return (lane(a, 0) > lane(b, 0) ? 0x0000ffffu : 0) | (lane(a, 1) > lane(b, 1) ? 0xffff0000u : 0);
  }
  PYCONV_DEVICE uint32_t is_nan(uint32_t a) {
    return (lane(a, 0) != lane(a, 0) ? 0x0000ffffu : 0) | (lane(a, 1) != lane(a, 1) ? 0xffff0000u : 0);
  }
  PYCONV_DEVICE uint32_t magnitudes(uint32_t a, uint32_t b) {
    const T low = narrow<T>(magnitude(lane(a, 0)) + magnitude(lane(b, 0)));
    const T high = narrow<T>(magnitude(lane(a, 1)) + magnitude(lane(b, 1)));
    return low.bits | uint32_t(high.bits) << 16;
  }
};

#if defined(PYCONV_EMULATED)
template <class T>
using Pairwise = Widened<T>;
#else
template <class T>
struct Pairwise;
template <>
struct Pairwise<Half> {
  PYCONV_DEVICE uint32_t larger(uint32_t a, uint32_t b) {
    uint32_t mask;
    asm("set.gt.u32.f16x2 %0, %1, %2;" : "=r"(mask) : "r"(a), "r"(b));
    return mask;
  }
  PYCONV_DEVICE uint32_t is_nan(uint32_t a) {
    uint32_t mask;
    asm("set.nan.u32.f16x2 %0, %1, %1;" : "=r"(mask) : "r"(a));
    return mask;
  }
  PYCONV_DEVICE uint32_t magnitudes(uint32_t a, uint32_t b) {
    uint32_t sum;
    asm("{ .reg .b32 a, b; abs.f16x2 a, %1; abs.f16x2 b, %2; add.f16x2 %0, a, b; }" : "=r"(sum) : "r"(a), "r"(b));
    return sum;
  }
};
#if __CUDA_ARCH__ >= 900
template <>
struct Pairwise<BFloat16> {
  PYCONV_DEVICE uint32_t larger(uint32_t a, uint32_t b) {
    uint32_t mask;
    asm("set.gt.u32.bf16x2 %0, %1, %2;" : "=r"(mask) : "r"(a), "r"(b));
    return mask;
  }
  PYCONV_DEVICE uint32_t is_nan(uint32_t a) {
    uint32_t mask;
    asm("set.nan.u32.bf16x2 %0, %1, %1;" : "=r"(mask) : "r"(a));
    return mask;
  }
  PYCONV_DEVICE uint32_t magnitudes(uint32_t a, uint32_t b) {
    uint32_t sum;
    asm("{ .reg .b32 a, b; abs.bf16x2 a, %1; abs.bf16x2 b, %2; add.bf16x2 %0, a, b; }"
        : "=r"(sum)
        : "r"(a), "r"(b));
    return sum;
  }
};
#else  // bfloat16 pairs are compared from sm_90 on
template <>
struct Pairwise<BFloat16> : Widened<BFloat16> {};
#endif
#endif

// Lane 0 in the low 16 bits, as in memory. A tap, too, has 16 bits.
template <class T>
struct TwoLanes : Pairwise<T> {
  static_assert(sizeof(T) == 2, "two elements of a Word are 16 bits each");
  typedef uint32_t Word, Hit, Tap;
  static constexpr int kLanes = 2, kNoTap = 0xffff;

  PYCONV_DEVICE Word lowest_of(Half) { return 0xfc00fc00u; }
  PYCONV_DEVICE Word lowest_of(BFloat16) { return 0xff80ff80u; }
  PYCONV_DEVICE Word lowest() { return lowest_of(T{}); }                  // -inf, -inf
  PYCONV_DEVICE Tap tap_of(int tap) { return uint32_t(tap) * 0x10001u; }  // not in the comparisons' unit
  PYCONV_DEVICE Tap taps_of(int low, int high) { return uint32_t(low & 0xffff) | uint32_t(high) << 16; }
  PYCONV_DEVICE int tap_in(Tap tap, int lane) { return int(tap >> 16 * lane & 0xffffu); }
  PYCONV_DEVICE Hit either(Hit a, Hit b) { return a | b; }
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

// kElements maxima, and the taps they come from; or without taps, sums of magnitudes for their NaNs.
template <class T, int kElements, bool kTaps>
struct Best;
template <class T, int kElements>
struct Best<T, kElements, true> {
  Values<T, kElements> value;
  typename Rule<T, kElements>::Tap tap[kWordsOf<T, kElements>];
};
template <class T, int kElements>
struct Best<T, kElements, false> {
  Values<T, kElements> value, magnitude;
};

// The first of some taps, numbered `tap`.
template <bool kTaps, class T, int kElements>
PYCONV_DEVICE Best<T, kElements, kTaps> start(const Values<T, kElements>& values,
                                              typename Rule<T, kElements>::Tap tap) {
  Best<T, kElements, kTaps> best;
  best.value = values;
  if constexpr (kTaps) {
    for (auto& each : best.tap) each = tap;
  } else {
    best.magnitude = values;
  }
  return best;
}
template <class T, int kElements, bool kTaps>
PYCONV_DEVICE void add_to_taps(Best<T, kElements, kTaps>& best, int offset) {
  if constexpr (kTaps)
    for (auto& tap : best.tap) tap += Rule<T, kElements>::tap_of(offset);
}

// kNoTap in the lanes of `nothing` that are ones, those of windows that cover nothing.
template <class T, int kElements>
PYCONV_DEVICE void mark(Best<T, kElements, true>& best, typename Rule<T, kElements>::Tap nothing) {
  for (auto& tap : best.tap) tap |= nothing;
}

// `later` holds taps after those of `best`; its own count from `offset`.
template <class T, int kElements>
PYCONV_DEVICE void take(Best<T, kElements, true>& best, const Best<T, kElements, true>& later, int offset) {
  typedef Rule<T, kElements> R;
  PYCONV_UNROLL
  for (int i = 0; i < kWordsOf<T, kElements>; ++i) {
    const auto value = later.value.word[i];
    const auto hit = R::either(R::larger(value, best.value.word[i]), R::is_nan(value));
    best.value.word[i] = R::choose(hit, value, best.value.word[i]);
    best.tap[i] = R::choose(hit, later.tap[i] + R::tap_of(offset), best.tap[i]);
  }
}
template <class T, int kElements>
PYCONV_DEVICE void take(Best<T, kElements, false>& best, const Best<T, kElements, false>& later, int) {
  typedef Rule<T, kElements> R;
  PYCONV_UNROLL
  for (int i = 0; i < kWordsOf<T, kElements>; ++i) {
    const auto value = later.value.word[i];
    best.magnitude.word[i] = R::magnitudes(best.magnitude.word[i], later.magnitude.word[i]);
    best.value.word[i] = R::choose(R::larger(value, best.value.word[i]), value, best.value.word[i]);
  }
}
// One tap.
template <class T, int kElements, bool kTaps>
PYCONV_DEVICE void take(Best<T, kElements, kTaps>& best, const Values<T, kElements>& later, int tap) {
  take(best, start<kTaps>(later, Rule<T, kElements>::tap_of(0)), tap);
}

// What the maxima are in the end.
template <class T, int kElements>
PYCONV_DEVICE const Values<T, kElements>& maxima(const Best<T, kElements, true>& best) {
  return best.value;
}
template <class T, int kElements>
PYCONV_DEVICE Values<T, kElements> maxima(const Best<T, kElements, false>& best) {
  typedef Rule<T, kElements> R;
  Values<T, kElements> values;
  PYCONV_UNROLL
  for (int i = 0; i < kWordsOf<T, kElements>; ++i) {
    const auto magnitude = best.magnitude.word[i];
    values.word[i] = R::choose(R::is_nan(magnitude), magnitude, best.value.word[i]);
  }
  return values;
}

}  // namespace pyconv
