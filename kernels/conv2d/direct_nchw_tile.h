// The register tile of the nchw direct kernel: mr output channels x a few vectors of output pixels.
//
//   sums[m][pixel] += sum over in channels, taps of  x[in][tap offset + pixel] * w[in][tap][m]
//
// x is the packed panel of direct_nchw_input.h, in which a tap is an offset, and w the packed filters of
// direct_pack.h. For every input channel and tap the pixel vectors are loaded once, and each of mr weights is broadcast
// against them. Sums are kept in chains of some kChain products, which are added to memory one after the other.
#pragma once
#include <algorithm>
#include <utility>

#include "common/simd.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

template <class T>
struct NchwConfig {
  // mr x 2 accumulators + 2 inputs + 1 broadcast: 31 of 32 registers, 15 of 16. Without FMA the product needs one
  // more.
#if defined(__AVX2__)
  static constexpr int kMr = kVectorRegisters == 32 ? 14 : 6;
#else
  static constexpr int kMr = 4;
#endif
  static constexpr int kVectors = 2;
  // Up to this many channels a tile takes 4 vectors: as many sums in flight, fewer broadcasts.
  static constexpr int kNarrowMr = kVectorRegisters == 32 ? 6 : 2;
  static constexpr int kNarrowVectors = 4;
  static constexpr int64_t kTileLanes = kNarrowVectors * kLanes<T>;  // most pixels of a tile
  static constexpr int64_t kChain = 128;             // products per partial sum: rounding errors stay short
  static constexpr int64_t kInputBytes = 512 << 10;  // input panel of a unit: half of a 1 MiB L2
  // A copy of the input costs a unit about what 4 channels of output cost.
  static constexpr int64_t kLeastPanels = (64 + kMr - 1) / kMr;
  static constexpr int64_t kPixels =
      512;  // of a unit, at least: more input channels than fit with them go in blocks
};

// What all tiles of one class of one unit share.
template <class T>
struct TileInput {
  int64_t channels, channel_size, taps;
  const int64_t* tap_offsets;
  const T* valid;  // a channel of ones where the panel is image and zeros where it is padding
};

// sums[m][lane] += the sums of pixels x[0], x[1], ... and packed filters w[in][tap][m]
template <class T, int kMr, int kVectors>
void nchw_tile(const TileInput<T>& input, const T* x, const T* w, T* sums) {
  constexpr int64_t L = kLanes<T>;
  const int64_t chunk = NchwConfig<T>::kChain / std::max<int64_t>(input.taps, 1) + 1;
  for (int64_t first = 0; first < input.channels; first += chunk) {
    Vec<T> acc[kMr][kVectors] = {};
    const int64_t end = std::min(first + chunk, input.channels);
    for (int64_t c = first; c < end; ++c) {
      const T* x_c = x + c * input.channel_size;
      for (int64_t tap = 0; tap < input.taps; ++tap, w += kMr) {
        const T* x_tap = x_c + input.tap_offsets[tap];
        Vec<T> value[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) value[v] = load(x_tap + v * L);
#pragma GCC unroll 16
        for (int m = 0; m < kMr; ++m) {
          const Vec<T> weight = broadcast(w[m]);
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) acc[m][v] += weight * value[v];
        }
      }
    }
#pragma GCC unroll 16
    for (int m = 0; m < kMr; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        T* sum = sums + (m * kVectors + v) * L;
        store(sum, load(sum) + acc[m][v]);
      }
    }
  }
}

// The same sums in the same order for one channel of a panel of mr and one vector, skipping padding.
template <class T>
void nchw_tile_masked(const TileInput<T>& input, const T* x, const T* valid, const T* w, int64_t mr, T* sums) {
  Vec<T> sum = load(sums);
  const int64_t chunk = NchwConfig<T>::kChain / std::max<int64_t>(input.taps, 1) + 1;
  for (int64_t first = 0; first < input.channels; first += chunk) {
    Vec<T> acc = {};
    for (int64_t c = first; c < std::min(first + chunk, input.channels); ++c) {
      for (int64_t tap = 0; tap < input.taps; ++tap, w += mr) {
        const int64_t offset = input.tap_offsets[tap];
        const Vec<T> next = multiply_add<T>(broadcast(*w), load(x + c * input.channel_size + offset), acc);
        acc = select<T>(load(valid + offset) != Vec<T>{}, next, acc);
      }
    }
    sum += acc;
  }
  store(sums, sum);
}

template <class T>
using TileFunction = void (*)(const TileInput<T>&, const T*, const T*, T*);

template <class T, int kVectors, int... kIndex>
TileFunction<T> tile_function(int64_t mr, std::integer_sequence<int, kIndex...>) {
  static constexpr TileFunction<T> kFunctions[] = {nchw_tile<T, kIndex + 1, kVectors>...};
  return kFunctions[mr - 1];
}

// The tile of mr channels for the next of `left` vectors of pixels, and how many of them it takes.
template <class T>
TileFunction<T> tile_function(int64_t mr, int64_t left, int64_t* vectors) {
  using Config = NchwConfig<T>;
  constexpr std::make_integer_sequence<int, Config::kMr> kAll{};
  constexpr std::make_integer_sequence<int, Config::kNarrowMr> kNarrow{};
  if (mr <= Config::kNarrowMr && left > Config::kVectors) {
    *vectors = Config::kNarrowVectors;
    return tile_function<T, Config::kNarrowVectors>(mr, kNarrow);
  }
  *vectors = left > 1 ? Config::kVectors : 1;
  return left > 1 ? tile_function<T, Config::kVectors>(mr, kAll) : tile_function<T, 1>(mr, kAll);
}

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
