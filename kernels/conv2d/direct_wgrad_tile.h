// The register tile of the direct weight gradient: mr values of x times nr vectors of filters, summed over pixels.
//
//   acc[m][k] += sum over images, rows p, columns q of  x[pixel(p,q)][m] * dy[p,q][k]
//
// m walks a run of channels (or of (s, c) pairs where the two are adjacent in the packed x), k the lanes. Each x
// is broadcast, each dy row is nr vectors: mr + nr loads feed mr * nr FMAs. Pixels are summed in chains of
// kChain, the chains of a call one after the other, and the call's sum is added to memory: so the rounding error
// grows with the sum of those three counts and not with their product.
#pragma once
#include <array>
#include <utility>

#include "common/simd.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

struct WgradTile {
  // mr * kNr accumulators, kNr vectors of dy and one broadcast fill the registers: 28 + 2 + 1 of 32, 12 + 2 + 1
  // of 16.
  static constexpr int kMr = kVectorRegisters == 32 ? 14 : 6;
  static constexpr int kNr = 2;
  // Pixels added one after the other. torch sums small problems in short chains, and the rounding error of ours
  // may be at most twice as large; a chain is folded with one load, addition and store for 64 FMAs.
  static constexpr int64_t kChain = 64;
};
static_assert(WgradTile::kMr * WgradTile::kNr + WgradTile::kNr + 1 <= kVectorRegisters, "the tile would spill");

// What one call sums over, in packed coordinates; strides in elements.
struct WgradPixels {
  int64_t images, rows, cols;
  int64_t x_image, x_row, x_col;
  int64_t dy_image, dy_row;  // a pixel of dy is kNr (or one) vectors wide
};

template <class T, int kRows, int kVectors>
void wgrad_tile(const WgradPixels& pixels, const T* x, const T* dy, T* acc, int64_t acc_stride) {
  constexpr int kWidth = kVectors * kLanes<T>;
  Vec<T> sum[kRows][kVectors] = {};
  Vec<T> total[kRows][kVectors];  // of the chains before; in memory, touched once per chain
  int64_t chain = 0;              // pixels in sum
  bool folded = false;            // total holds something
  const int64_t x_col = pixels.x_col;
  for (int64_t image = 0; image < pixels.images; ++image) {
    for (int64_t row = 0; row < pixels.rows; ++row) {
      const T* x_pixel = x + image * pixels.x_image + row * pixels.x_row;
      const T* dy_pixel = dy + image * pixels.dy_image + row * pixels.dy_row;
      for (int64_t left = pixels.cols; left > 0;) {
        const int64_t count = left < WgradTile::kChain - chain ? left : WgradTile::kChain - chain;
        for (int64_t col = 0; col < count; ++col, x_pixel += x_col, dy_pixel += kWidth) {
          Vec<T> filters[kVectors];
          for (int j = 0; j < kVectors; ++j) filters[j] = load(dy_pixel + j * kLanes<T>);
          for (int m = 0; m < kRows; ++m) {
            const Vec<T> value = broadcast<T>(x_pixel[m]);
            for (int j = 0; j < kVectors; ++j) sum[m][j] += value * filters[j];
          }
        }
        left -= count, chain += count;
        if (chain < WgradTile::kChain) break;
        for (int m = 0; m < kRows; ++m) {
          for (int j = 0; j < kVectors; ++j) {
            total[m][j] = folded ? total[m][j] + sum[m][j] : sum[m][j];
            sum[m][j] = Vec<T>{};
          }
        }
        chain = 0, folded = true;
      }
    }
  }
  for (int m = 0; m < kRows; ++m) {
    for (int j = 0; j < kVectors; ++j) {
      T* to = acc + m * acc_stride + j * kLanes<T>;
      store<T>(to, load(to) + (folded ? total[m][j] + sum[m][j] : sum[m][j]));
    }
  }
}

// The tile of `rows` (1..kMr) by `vectors` (1..kNr): every shape is its own function, so no lane is wasted on
// tails.
template <class T>
using WgradTileFunction = void (*)(const WgradPixels&, const T*, const T*, T*, int64_t);

template <class T, int kVectors, int... kRows>
constexpr std::array<WgradTileFunction<T>, sizeof...(kRows)> wgrad_tiles(std::integer_sequence<int, kRows...>) {
  return {{wgrad_tile<T, kRows + 1, kVectors>...}};
}

template <class T>
WgradTileFunction<T> wgrad_tile_for(int64_t rows, int64_t vectors) {
  using Rows = std::make_integer_sequence<int, WgradTile::kMr>;
  static constexpr auto kOne = wgrad_tiles<T, 1>(Rows{});
  static constexpr auto kTwo = wgrad_tiles<T, 2>(Rows{});
  return vectors == 1 ? kOne[size_t(rows - 1)] : kTwo[size_t(rows - 1)];
}

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
