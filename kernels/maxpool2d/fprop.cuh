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

// Results of a thread whose loads may be in flight together. With loads of 16 bytes those of one are enough, and more
// would not fit the registers; nor would four in nhwc, where each column needs an address of its own.
template <int kLayout, int kElements>
constexpr int kTogether = kLayout == kNchw ? 4
                          : kElements > 1  ? 1
                                           : 2;

// The taps of one row, of which `row` is the element under the first.
template <class T, int kElements, int kS>
PYCONV_DEVICE void load_taps(const T* row, bool inside, int w, int w_extent, int inner,
                             Values<T, kElements> (&taps)[kS]) {
  PYCONV_UNROLL
  for (int s = 0; s < kS; ++s)
    taps[s] = inside && is_inside(w + s, w_extent) ? load_values<kElements>(row + int64_t(s) * inner)
                                                   : lowest_values<T, kElements>();
}

// The best of the taps of one row: `from` is the element (h, w), in the image or not.
template <class T, int kLayout, int kElements, int kS, int kStride, int kBegin, bool kTaps>
PYCONV_DEVICE Best<T, kElements, kTaps> best_of_row(const T* from, bool inside, int w, int w_extent, int inner,
                                                    typename Rule<T, kElements>::Tap first_s) {
  Values<T, kElements> taps[kS];
  if constexpr (kIsPair<kLayout, kElements>) {
    load_pairs<T, kS, kStride, kBegin>(from, inside, w, w_extent, taps);
  } else {
    load_taps(from, inside, w, w_extent, inner, taps);
  }
  Best<T, kElements, kTaps> best = start<kTaps>(taps[0], first_s);
  PYCONV_UNROLL
  for (int s = 1; s < kS; ++s) take(best, taps[s], s);
  return best;
}

// Along one axis, a window of kSize taps that begins at `start`: its first tap inside (or any, if there is none), and
// -1 if there is none, else 0.
template <int kSize>
PYCONV_DEVICE int first_inside(int start) {
  return start >= 0 ? 0 : start > -kSize ? -start : 0;
}
template <int kSize>
PYCONV_DEVICE int nothing_inside(int start, int extent) {
  return start > -kSize && start < extent ? 0 : -1;
}

// The argmaxes of a thread's results; their windows begin at (h, w), and `apart` columns from each other.
template <class Place, class T, int kElements>
PYCONV_DEVICE void places_of(const Pool2dProblem& problem, const Items& items, int h, int w, int apart,
                             const Best<T, kElements, true>& best, Place (&places)[kElements]) {
  typedef Rule<T, kElements> R;
  PYCONV_UNROLL
  for (int i = 0; i < kElements; ++i) {
    const int tap = R::tap_in(best.tap[i / R::kLanes], i % R::kLanes);
    places[i] = place_of<Place, R::kNoTap>(problem, items, h, w + i * apart, tap);
  }
}

template <class T, int kLayout, int kThreads, int kElements, int kR, int kS, int kStride, int kOutputs, int kBegin,
          class Place>
PYCONV_DEVICE void fprop_window_tile(const Pool2dProblem& problem, const Items& items, const T* x, T* y,
                                     Place* argmax) {
  const uint32_t item = item_of_thread<kThreads>();
  if (item >= items.count) return;
  static_assert(kR >= kStride, "rows between windows would have to be skipped");
  static_assert(kOutputs % kTogether<kLayout, kElements> == 0, "a thread's results come in whole batches");
  typedef Rule<T, kElements> R;
  constexpr bool kTaps = kHasPlaces<Place>, kPair = kIsPair<kLayout, kElements>;
  constexpr int kKept = kR - kStride;  // rows that one window shares with the next
  constexpr int kBatch = kTogether<kLayout, kElements>;
  const int h_extent = int(problem.h), w_extent = int(problem.w), inner = inner_extent<kLayout>(problem);
  const Position at = position(items, item);
  const int p = at.group * kOutputs, q = at.column * (kPair ? 2 : 1), channel = kPair ? 0 : at.vector * kElements;
  const int h = p * kStride - int(problem.pad_top), w = q * kStride - int(problem.pad_left);
  const T* corner = x + offset_of(at.image, h, w, h_extent, w_extent, inner) + channel;
  const int64_t row_stride = int64_t(w_extent) * inner, y_row_stride = int64_t(items.q) * inner;
  const int64_t to = offset_of(at.image, p, q, items.p, items.q, inner) + channel;
  const int second_w = kPair ? w + kStride : w;  // of the second lane
  const auto first_s = R::taps_of(first_inside<kS>(w), first_inside<kS>(second_w));
  const auto nothing = R::taps_of(nothing_inside<kS>(w, w_extent), nothing_inside<kS>(second_w, w_extent));
  const auto row = [&](int i) {
    return best_of_row<T, kLayout, kElements, kS, kStride, kBegin, kTaps>(
        corner + i * row_stride, is_inside(h + i, h_extent), w, w_extent, inner, first_s);
  };

  Best<T, kElements, kTaps> rows[kR], best[kBatch];
  PYCONV_UNROLL
  for (int r = 0; r < kKept; ++r) rows[r] = row(r);
  PYCONV_UNROLL_BY(1)
  for (int first = 0; first < kOutputs; first += kBatch) {
    PYCONV_UNROLL
    for (int i = 0; i < kBatch; ++i) {
      const int top = (first + i) * kStride;
      PYCONV_UNROLL
      for (int r = kKept; r < kR; ++r) rows[r] = row(top + r);
      best[i] = rows[0];
      add_to_taps(best[i], kS * first_inside<kR>(h + top));
      PYCONV_UNROLL
      for (int r = 1; r < kR; ++r) take(best[i], rows[r], kS * r);
      PYCONV_UNROLL
      for (int r = 0; r < kKept; ++r) rows[r] = rows[r + kStride];
    }
    PYCONV_UNROLL
    for (int i = 0; i < kBatch; ++i) {
      const int output = first + i;
      if (p + output >= items.p) break;
      const int64_t here = to + output * y_row_stride;
      if constexpr (kPair) {
        store_pair(y + here, maxima(best[i]).word[0], q, items.q);
      } else {
        store_values<kElements>(y + here, maxima(best[i]));
      }
      if constexpr (kTaps) {
        const int top = h + output * kStride;
        Place places[kElements];
        mark(best[i], nothing | typename R::Tap(nothing_inside<kR>(top, h_extent)));
        places_of(problem, items, top, w, kPair ? kStride : 0, best[i], places);
        if constexpr (kPair) {
          store_pair(argmax + here, places, q, items.q);
        } else {
          store_all(argmax + here, places);
        }
      }
    }
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
  PYCONV_UNROLL_BY(1)
  for (int r = rows.begin; r < rows.end; ++r) {
    const T* row = corner + r * row_step;
    PYCONV_UNROLL_BY(kElements > 1 ? 2 : 4)
    for (int s = columns.begin; s < columns.end; ++s)
      take(best, load_values<kElements>(row + s * column_step), r * int(problem.s) + s);
  }

  const int64_t to = offset_of(at.image, p, q, items.p, items.q, inner) + channel;
  store_values<kElements>(y + to, maxima(best));
  if constexpr (kTaps) {
    Place places[kElements];
    mark(best, rows.begin < rows.end && columns.begin < columns.end ? 0 : typename R::Tap(-1));
    places_of(problem, items, h, w, 0, best, places);
    store_all(argmax + to, places);
  }
}

}  // namespace pyconv
