// The register tile of the nhwc direct kernel: mr output pixels x nr output channels.
//
//   y[pixel][out] = sum over taps, in channels of  x[pixel's offset + tap + in] * w[tap][in][out]
//
// For every tap and input channel, one scalar of each pixel's input is broadcast against nr packed weights. Each pixel
// keeps its own offset, so a tile may take its pixels from anywhere. Sums are kept in chains of some kChain products;
// then bias, or what the blocks of input channels before have left in y, is added.
#pragma once
#include <algorithm>

#include "common/simd.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

template <class T>
struct NhwcConfig {
  // 14 x 2 accumulators + 2 weights + 1 broadcast of 32 registers; 6 x 2 of 16. Without FMA the product needs one
  // more.
#if defined(__AVX2__)
  static constexpr int kMr = kVectorRegisters == 32 ? 14 : 6;
#else
  static constexpr int kMr = 4;
#endif
  static constexpr int kVectors = 2;
  static constexpr int64_t kNr = kVectors * kLanes<T>;
  static constexpr int64_t kChain = 128;             // products added one after the other (direct_nchw.h)
  static constexpr int64_t kPanelBytes = 320 << 10;  // one panel's block of weights: a third of a 1 MiB L2
  static constexpr int64_t kInputBytes = 384 << 10;  // the input pixels of a unit: another third
};

// The taps of one rectangle. A run is what lies contiguous in x and in the panel: the channels of a block, or the
// channels of a whole row of taps where those are neighbours in x.
struct Taps {
  int64_t rows, x_row_step, w_row_step;
  int64_t cols, x_col_step, run;
};

template <class T>
struct Pixels {
  int64_t in[NhwcConfig<T>::kMr], out[NhwcConfig<T>::kMr];  // offsets into x and y
};

template <class T>
struct Epilogue {
  const T* bias;    // of the panel's first channel, or null
  bool accumulate;  // add to what is in y: not the first block of input channels
  int64_t lanes;    // channels of the panel
};

template <class T, int kPixels, int kVectors>
void nhwc_tile(const T* x, const T* w, const Taps& taps, const Pixels<T>& pixels, int valid, T* y,
               const Epilogue<T>& epilogue) {
  Vec<T> acc[kPixels][kVectors] = {};
  Vec<T> total[kPixels][kVectors];  // of the partial sums before; in memory, touched once per kChain products
  int64_t chain = 0;                // products in acc
  bool folded = false;              // total holds something
  int64_t in[kPixels];
#pragma GCC unroll 16
  for (int m = 0; m < kPixels; ++m) in[m] = pixels.in[m];

  for (int64_t row = 0; row < taps.rows; ++row) {
    const T* w_run = w + row * taps.w_row_step;
    for (int64_t col = 0; col < taps.cols; ++col) {
      const T* x_run = x + row * taps.x_row_step + col * taps.x_col_step;
      for (int64_t left = taps.run; left > 0;) {
        const int64_t count = std::min(left, NhwcConfig<T>::kChain - chain);
        for (const T* x_end = x_run + count; x_run < x_end; ++x_run, w_run += kVectors * kLanes<T>) {
          Vec<T> weights[kVectors];
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) weights[v] = load(w_run + v * kLanes<T>);
#pragma GCC unroll 16
          for (int m = 0; m < kPixels; ++m) {
            const Vec<T> value = broadcast(x_run[in[m]]);
#pragma GCC unroll 2
            for (int v = 0; v < kVectors; ++v) acc[m][v] += value * weights[v];
          }
        }
        left -= count, chain += count;
        if (chain < NhwcConfig<T>::kChain) break;
#pragma GCC unroll 16
        for (int m = 0; m < kPixels; ++m) {
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) {
            total[m][v] = folded ? total[m][v] + acc[m][v] : acc[m][v];
            acc[m][v] = Vec<T>{};
          }
        }
        chain = 0, folded = true;
      }
    }
  }
  if (folded) {
#pragma GCC unroll 16
    for (int m = 0; m < kPixels; ++m)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) acc[m][v] += total[m][v];
  }

#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
    const int64_t first = v * kLanes<T>;
    const int lanes = int(std::min<int64_t>(kLanes<T>, epilogue.lanes - first));
    const Vec<T> bias =
        epilogue.bias && !epilogue.accumulate ? load_partial(epilogue.bias + first, lanes) : Vec<T>{};
#pragma GCC unroll 16
    for (int m = 0; m < kPixels; ++m) {
      if (m >= valid) continue;  // repeats the last pixel
      T* to = y + pixels.out[m] + first;
      if (lanes == kLanes<T>) {
        store(to, acc[m][v] + (epilogue.accumulate ? load(to) : bias));
      } else {
        store_partial(to, acc[m][v] + (epilogue.accumulate ? load_partial(to, lanes) : bias), lanes);
      }
    }
  }
}

// The smallest of the tile sizes mr, 8, 4, 2, 1 that holds `count` pixels.
template <class T, int kVectors>
void nhwc_tile_of(int count, const T* x, const T* w, const Taps& taps, const Pixels<T>& pixels, T* y,
                  const Epilogue<T>& epilogue) {
  constexpr int kMr = NhwcConfig<T>::kMr;
  if (count > 8 || (count > 4 && kMr <= 8))
    return nhwc_tile<T, kMr, kVectors>(x, w, taps, pixels, count, y, epilogue);
  if constexpr (kMr > 8)
    if (count > 4) return nhwc_tile<T, 8, kVectors>(x, w, taps, pixels, count, y, epilogue);
  if (count > 2) return nhwc_tile<T, 4, kVectors>(x, w, taps, pixels, count, y, epilogue);
  if (count == 2) return nhwc_tile<T, 2, kVectors>(x, w, taps, pixels, count, y, epilogue);
  return nhwc_tile<T, 1, kVectors>(x, w, taps, pixels, count, y, epilogue);
}

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
