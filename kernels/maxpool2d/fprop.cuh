// Max-pooling forward on the GPU: y[n,c,p,q] = max over r,s of x[n,c,h,w], with or without where the winner is.
//
// A thread computes kElements results side by side: in nhwc channels of a pixel, 16 bytes of them where c allows; in
// nchw one result, or two neighbours along q (pairs.cuh).
//
// fprop_window: window and stride are known to the compiler. A thread computes kOutputs results of one column, p to
// p + kOutputs - 1, from the (kOutputs - 1) * kStride + kR rows of x under them, and takes the best of each row once.
// fprop_any: one result of any window, stride and dilation; only taps inside the image are looked at.
//
// Taps on padding are -inf in fprop_window. They never win: a result starts from -inf and its first tap inside.
#pragma once
#include "maxpool2d/pairs.cuh"
#include "maxpool2d/places.cuh"

namespace pyconv {

// Outputs of a thread whose loads may be in flight together. With 16 bytes a load those of one output are enough, and
// more would not fit the registers; with 4 bytes all of them are wanted.
template <int kLayout, int kElements, int kOutputs>
constexpr int kUnrolledOutputs = kLayout == kNhwc && kElements > 1 ? 1 : kOutputs;

// The taps of one row, of which `row` is the element under the first: a vector of channels each.
template <class T, int kElements, int kS>
PYCONV_DEVICE void load_taps(const T* row, bool inside, int w, int w_extent, int inner,
                             Values<T, kElements> (&taps)[kS]) {
  PYCONV_UNROLL
  for (int s = 0; s < kS; ++s) {
    taps[s] = inside && is_inside(w + s, w_extent) ? load_values<kElements>(row + int64_t(s) * inner)
                                                   : lowest_values<T, kElements>();
  }
}

// Writes one result of a thread. Where its elements are a pair, theirs are two windows, kStride columns apart.
template <int kLayout, int kStride, class T, int kElements, class Place>
PYCONV_DEVICE void store_result(const Pool2dProblem& problem, const Items& items, const Window& window,
                                const Taps& second_columns, const Best<T, kElements, kHasPlaces<Place>>& best,
                                int q, T* y, Place* argmax) {
  constexpr bool kPair = kIsPair<kLayout, kElements>;
  if constexpr (kPair) {
    store_pair(y, best.value.word[0], q, items.q);
  } else {
    store_values<kElements>(y, best.value);
  }
  if constexpr (kHasPlaces<Place>) {
    typedef Rule<T, kElements> R;
    Place places[kElements];
    PYCONV_UNROLL
    for (int i = 0; i < kElements; ++i) {
      const int tap = R::tap_in(best.tap[i / R::kLanes], i % R::kLanes);
      if (kPair && i == 1) {
        const Window second = {window.h, window.w + kStride, window.rows, second_columns};
        place_into(places[i], problem, items, second, tap);
      } else {
        place_into(places[i], problem, items, window, tap);
      }
    }
    if constexpr (kPair) {
      store_pair(argmax, places, q, items.q);
    } else {
      store_all(argmax, places);
    }
  }
}

// The best of the taps of one row: `from` is the element (h, w), in the image or not.
template <class T, int kLayout, int kElements, int kS, int kStride, int kOdd, bool kTaps>
PYCONV_DEVICE Best<T, kElements, kTaps> best_of_row(const T* from, bool inside, int w, int w_extent, int inner,
                                                    typename Rule<T, kElements>::Tap first_s) {
  Values<T, kElements> taps[kS];
  if constexpr (kIsPair<kLayout, kElements>) {
    load_pairs<T, kS, kStride, kOdd>(from, inside, w, w_extent, taps);
  } else {
    load_taps(from, inside, w, w_extent, inner, taps);
  }
  Best<T, kElements, kTaps> best = start<kTaps>(taps[0], first_s);
  PYCONV_UNROLL
  for (int s = 1; s < kS; ++s) take(best, taps[s], s);
  return best;
}

template <class T, int kLayout, int kThreads, int kElements, int kR, int kS, int kStride, int kOutputs, int kOdd,
          class Place>
PYCONV_DEVICE void fprop_window_tile(const Pool2dProblem& problem, const Items& items, const T* x, T* y,
                                     Place* argmax) {
  const uint32_t item = item_of_thread<kThreads>();
  if (item >= items.count) return;
  static_assert(kR >= kStride, "rows between windows would have to be skipped");
  typedef Rule<T, kElements> R;
  constexpr bool kTaps = kHasPlaces<Place>, kPair = kIsPair<kLayout, kElements>;
  constexpr int kKept = kR - kStride;  // rows that one window shares with the next
  constexpr int kUnroll = kUnrolledOutputs<kLayout, kElements, kOutputs>;
  const int h_extent = int(problem.h), w_extent = int(problem.w), inner = inner_extent<kLayout>(problem);
  const Position at = position(items, item);
  const int p = at.group * kOutputs, q = at.column * (kPair ? 2 : 1), channel = kPair ? 0 : at.vector * kElements;
  const int h = p * kStride - int(problem.pad_top), w = q * kStride - int(problem.pad_left);
  const T* corner = x + offset_of(at.image, h, w, h_extent, w_extent, inner) + channel;
  const int64_t row_stride = int64_t(w_extent) * inner;
  const int64_t to = offset_of(at.image, p, q, items.p, items.q, inner) + channel,
                y_row_stride = int64_t(items.q) * inner;
  const Taps columns = taps_inside(w, kS, 1, w_extent), second_columns = taps_inside(w + kStride, kS, 1, w_extent);
  const auto first_s = kPair ? R::taps_of(columns.begin, second_columns.begin) : R::tap_of(columns.begin);
  const auto row = [&](int i) {
    return best_of_row<T, kLayout, kElements, kS, kStride, kOdd, kTaps>(
        corner + i * row_stride, is_inside(h + i, h_extent), w, w_extent, inner, first_s);
  };

  Best<T, kElements, kTaps> rows[kR];
  PYCONV_UNROLL
  for (int r = 0; r < kKept; ++r) rows[r] = row(r);
  PYCONV_UNROLL_BY(kUnroll)
  for (int output = 0; output < kOutputs; ++output) {
    PYCONV_UNROLL
    for (int r = kKept; r < kR; ++r) rows[r] = row(output * kStride + r);
    const int top = h + output * kStride;
    const Window window = {top, w, taps_inside(top, kR, 1, h_extent), columns};
    Best<T, kElements, kTaps> best = rows[0];
    add_taps(best, kS * window.rows.begin);
    PYCONV_UNROLL
    for (int r = 1; r < kR; ++r) take(best, rows[r], kS * r);
    if (p + output < items.p) {
      const int64_t here = to + output * y_row_stride;
      store_result<kLayout, kStride>(problem, items, window, second_columns, best, q, y + here,
                                     kTaps ? argmax + here : argmax);
    }
    PYCONV_UNROLL
    for (int r = 0; r < kKept; ++r) rows[r] = rows[r + kStride];
  }
}

template <class T, int kLayout, int kThreads, int kElements, class Place>
PYCONV_DEVICE void fprop_any_tile(const Pool2dProblem& problem, const Items& items, const T* x, T* y,
                                  Place* argmax) {
  const uint32_t item = item_of_thread<kThreads>();
  if (item >= items.count) return;
  typedef Rule<T, kElements> R;
  constexpr bool kTaps = kHasPlaces<Place>;
  const int h_extent = int(problem.h), w_extent = int(problem.w), inner = inner_extent<kLayout>(problem);
  const int dilation_h = int(problem.dilation_h), dilation_w = int(problem.dilation_w);
  const Position at = position(items, item);
  const int p = at.group, q = at.column, channel = at.vector * kElements;
  const int h = p * int(problem.stride_h) - int(problem.pad_top);
  const int w = q * int(problem.stride_w) - int(problem.pad_left);
  const T* corner = x + offset_of(at.image, h, w, h_extent, w_extent, inner) + channel;
  const int64_t row_step = int64_t(dilation_h) * w_extent * inner, column_step = int64_t(dilation_w) * inner;
  const Taps rows = taps_inside(h, int(problem.r), dilation_h, h_extent);
  const Taps columns = taps_inside(w, int(problem.s), dilation_w, w_extent);

  const int first_tap = rows.begin * int(problem.s) + columns.begin;
  Best<T, kElements, kTaps> best = start<kTaps>(lowest_values<T, kElements>(), R::tap_of(first_tap));
  for (int r = rows.begin; r < rows.end; ++r) {
    const T* row = corner + r * row_step;
    for (int s = columns.begin; s < columns.end; ++s)
      take(best, load_values<kElements>(row + s * column_step), r * int(problem.s) + s);
  }

  const int64_t to = offset_of(at.image, p, q, items.p, items.q, inner) + channel;
  store_result<kNhwc, 1>(problem, items, Window{h, w, rows, columns}, columns, best, q, y + to,
                         kTaps ? argmax + to : argmax);
}

}  // namespace pyconv
