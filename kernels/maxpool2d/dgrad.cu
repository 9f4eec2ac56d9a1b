// Max-pooling backward: dx[n,c,h,w] = sum of dy[n,c,p,q] over the windows whose argmax names (h, w).
//
// Gathered, not scattered: each element of dx looks at the windows that cover it, at most ceil(r/stride_h) *
// ceil(s/stride_w) of them. So it has one owner, needs no atomics, and adds in row-major order of (p, q) always. An
// argmax that lies outside its own window (a caller may pass any) is seen by no element and adds nowhere.
//
// dgrad_window: window and stride are known to the compiler. A thread owns kCells * kStride rows of one column of dx, so
// that with the padding's rows counted it begins at a multiple of kStride: which taps lie on its rows is then fixed,
// and a row of windows is loaded once for all of them. In nhwc an element is 16 bytes of channels; in nchw one, or two
// neighbours (kPixels), whose windows are fixed as well, pad_left being odd or even (kOdd). The two are stored at once
// if w is even (kWhole).
// dgrad_any: one element of dx, for any window, stride and dilation.
#include "common/numbers.h"
#include "maxpool2d/places.cuh"

namespace pyconv {

// What the argmax of a window says if its winner is (h, w), the tap (r, s) of the window.
template <class Place>
PYCONV_DEVICE int name_of(int h, int w, int w_extent, int r, int s, int s_extent) {
  return sizeof(Place) == 1 ? r * s_extent + s : h * w_extent + w;
}
// The argmax of kVector windows side by side. Bytes stay in their words: whether one of them is a given name is a single
// logical instruction then, with no extraction before it.
template <class Place, int kVector>
struct Names {
  Place place[kVector];
};
template <int kVector>
struct Names<uint8_t, kVector> {
  uint32_t word[(kVector + 3) / 4];
};
template <int kVector>
PYCONV_DEVICE bool is_named(const Names<int32_t, kVector>& names, int lane, int name) {
  return names.place[lane] == name;
}
template <int kVector>
PYCONV_DEVICE bool is_named(const Names<uint8_t, kVector>& names, int lane, int name) {
  if constexpr (kVector == 1) return names.word[0] == uint32_t(name);
  return ((names.word[lane / 4] ^ uint32_t(name) * 0x01010101u) & 0xffu << lane % 4 * 8) == 0;
}
template <int kVector>
PYCONV_DEVICE void load_names(const int32_t* at, Names<int32_t, kVector>& names) {
  load_all(at, names.place);
}
template <int kVector>
PYCONV_DEVICE void load_names(const uint8_t* at, Names<uint8_t, kVector>& names) {
  if constexpr (kVector >= 4) {
    load_all(reinterpret_cast<const uint32_t*>(at), names.word);
  } else if constexpr (kVector == 2) {
    names.word[0] = *reinterpret_cast<const uint16_t*>(at);
  } else {
    names.word[0] = *at;
  }
}
// Of a window that does not exist.
PYCONV_DEVICE Names<int32_t, 1> no_name(int32_t) { return {{int(0x80000000u)}}; }
PYCONV_DEVICE Names<uint8_t, 1> no_name(uint8_t) { return {{255}}; }

template <class T, int kLayout, int kThreads, int kElements, int kR, int kS, int kStride, int kCells, int kOdd,
          bool kWhole, class Place>
__global__ void __launch_bounds__(kThreads, kBlocks<kThreads>)
    dgrad_window(const T* __restrict__ dy, const Place* __restrict__ argmax, T* __restrict__ dx,
                 Pool2dProblem problem, Items items) {
  const uint32_t item = item_of_thread<kThreads>();
  if (item >= items.count) return;
  constexpr bool kPair = kLayout == kNchw && kElements == 2;
  constexpr int kPixels = kPair ? 2 : 1, kVector = kElements / kPixels, kRows = kStride * kCells;
  constexpr int kAbove = (kR - 1) / kStride, kBefore = (kS - 1) / kStride;  // earlier windows that reach a cell
  constexpr int kAfter = kPair ? (kOdd % kStride + 1) / kStride : 0;  // the second pixel may lie in a later one
  const int w_extent = int(problem.w), inner = inner_extent<kLayout>(problem);
  const Position at = position(items, item);
  const int cell = int(problem.pad_top) / kStride + at.group * kCells, h = cell * kStride - int(problem.pad_top);
  const int w = at.column * kPixels, padded_w = w + int(problem.pad_left), channel = at.vector * kVector;
  const int q_of_w = padded_w / kStride, phase = kPair ? kOdd % kStride : padded_w % kStride;
  const int64_t corner = offset_of(at.image, cell - kAbove, q_of_w, items.p, items.q, inner) + channel;
  const int64_t row_stride = int64_t(items.q) * inner;

  Accumulator<T> sum[kRows][kElements] = {};
  const auto covers = [&](int i, int j) {  // window (i, j) exists, and one of its taps lies on a pixel
    const int last_s = phase - kStride * j;
    return last_s > -kPixels && last_s < kS && is_inside(q_of_w + j, items.q) &&
           is_inside(cell - kAbove + i, items.p);
  };
  const auto offset = [&](int i, int j) { return corner + i * row_stride + int64_t(j) * inner; };
  const auto collect = [&](int i, int j, const Names<Place, kVector>& names, const Accumulator<T>* given) {
    const int last_s = phase - kStride * j;  // the tap that would lie on the first pixel
    PYCONV_UNROLL
    for (int a = 0; a < kRows; ++a) {
      const int r = a + kStride * (kAbove - i);
      if (r < 0 || r >= kR) continue;
      PYCONV_UNROLL
      for (int element = 0; element < kElements; ++element) {
        const int pixel = element / kVector, lane = element % kVector;
        if (kPair && !is_inside(last_s + pixel, kS)) continue;
        const int name = name_of<Place>(h + a, w + pixel, w_extent, r, last_s + pixel, kS);
        if (is_named(names, lane, name)) sum[a][element] += given[lane];
      }
    }
  };

  // Vectors are taken one window at a time, which is bytes enough in flight, and more would not fit the registers. Single
  // elements are all loaded first.
  constexpr int kDeep = kAbove + kCells, kWide = kBefore + 1 + kAfter;
  if constexpr (kVector > 1) {
    PYCONV_UNROLL
    for (int i = 0; i < kDeep; ++i) {
      PYCONV_UNROLL
      for (int j = -kBefore; j <= kAfter; ++j) {
        if (!covers(i, j)) continue;
        Names<Place, kVector> names;
        load_names(argmax + offset(i, j), names);
        T given[kVector];
        load_all(dy + offset(i, j), given);
        Accumulator<T> widened[kVector];
        PYCONV_UNROLL
        for (int lane = 0; lane < kVector; ++lane) widened[lane] = widen(given[lane]);
        collect(i, j, names, widened);
      }
    }
  } else {
    Names<Place, 1> names[kDeep][kWide];
    Accumulator<T> given[kDeep][kWide];
    PYCONV_UNROLL
    for (int i = 0; i < kDeep; ++i) {
      PYCONV_UNROLL
      for (int j = -kBefore; j <= kAfter; ++j) {
        const bool exists = covers(i, j);
        names[i][j + kBefore] = no_name(Place{});
        if (exists) load_names(argmax + offset(i, j), names[i][j + kBefore]);
        given[i][j + kBefore] = exists ? widen(dy[offset(i, j)]) : 0;
      }
    }
    PYCONV_UNROLL
    for (int i = 0; i < kDeep; ++i) {
      PYCONV_UNROLL
      for (int j = -kBefore; j <= kAfter; ++j) collect(i, j, names[i][j + kBefore], &given[i][j + kBefore]);
    }
  }

  const int64_t to = offset_of(at.image, h, w, int(problem.h), w_extent, inner) + channel;
  PYCONV_UNROLL
  for (int a = 0; a < kRows; ++a) {
    if (!is_inside(h + a, int(problem.h))) continue;
    T elements[kElements];
    PYCONV_UNROLL
    for (int i = 0; i < kElements; ++i) elements[i] = narrow<T>(sum[a][i]);
    T* at_row = dx + to + a * int64_t(w_extent) * inner;
    if constexpr (kPair && !kWhole) {
      at_row[0] = elements[0];
      if (w + 1 < w_extent) at_row[1] = elements[1];
    } else {
      store_all(at_row, elements);
    }
  }
}

// The windows [begin, end) along one axis that may cover element `at`; with dilation not every one of them does.
struct Covering {
  int begin, end;
};
PYCONV_DEVICE Covering covering(int at, int pad, int size, int stride, int dilation, int windows) {
  const int last = at + pad, first = last - (size - 1) * dilation, end = last / stride + 1;
  return {first > 0 ? (first + stride - 1) / stride : 0, end < windows ? end : windows};
}

template <class T, int kLayout, int kThreads, int kElements, class Place>
__global__ void __launch_bounds__(kThreads, kBlocks<kThreads>)
    dgrad_any(const T* __restrict__ dy, const Place* __restrict__ argmax, T* __restrict__ dx,
              Pool2dProblem problem, Items items) {
  const uint32_t item = item_of_thread<kThreads>();
  if (item >= items.count) return;
  const int inner = inner_extent<kLayout>(problem);
  const int stride_h = int(problem.stride_h), stride_w = int(problem.stride_w);
  const int dilation_h = int(problem.dilation_h), dilation_w = int(problem.dilation_w);
  const Position at = position(items, item);
  const int h = at.group, w = at.column, channel = at.vector * kElements;
  const int padded_h = h + int(problem.pad_top), padded_w = w + int(problem.pad_left), s_extent = int(problem.s);
  const Covering rows = covering(h, int(problem.pad_top), int(problem.r), stride_h, dilation_h, items.p);
  const Covering columns = covering(w, int(problem.pad_left), int(problem.s), stride_w, dilation_w, items.q);

  Accumulator<T> sum[kElements] = {};
  for (int p = rows.begin; p < rows.end; ++p) {
    const int reach_h = padded_h - p * stride_h;
    if (dilation_h > 1 && reach_h % dilation_h != 0) continue;
    PYCONV_UNROLL_BY(2)
    for (int q = columns.begin; q < columns.end; ++q) {
      const int reach_w = padded_w - q * stride_w;
      if (dilation_w > 1 && reach_w % dilation_w != 0) continue;
      const int64_t from = offset_of(at.image, p, q, items.p, items.q, inner) + channel;
      const int name = name_of<Place>(h, w, int(problem.w), reach_h / dilation_h, reach_w / dilation_w, s_extent);
      Names<Place, kElements> names;
      load_names(argmax + from, names);
      T given[kElements];
      load_all(dy + from, given);
      // Added even if it is 0: an addition on a condition has the compiler load each element on it, too.
      PYCONV_UNROLL
      for (int i = 0; i < kElements; ++i) {
        const Accumulator<T> value = widen(given[i]);
        sum[i] += is_named(names, i, name) ? value : 0;
      }
    }
  }
  T elements[kElements];
  PYCONV_UNROLL
  for (int i = 0; i < kElements; ++i) elements[i] = narrow<T>(sum[i]);
  store_all(dx + offset_of(at.image, h, w, int(problem.h), int(problem.w), inner) + channel, elements);
}

}  // namespace pyconv
