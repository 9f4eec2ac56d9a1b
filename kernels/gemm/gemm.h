// Blocked matrix product:  C[m, n] = sum over k of A[m, k] * B[k, n]
//
// After Goto & van de Geijn (2008) and BLIS (Van Zee & van de Geijn 2015), with the panel of A reduced to
// one sliver, since convolution has its large reuse in B:
//
//   for nc columns                                    (B panel: L2)
//     for kc of the sum        B panel <- pack_b
//       for mr rows            A sliver <- pack_a     (L1)
//         for nr columns       register tile: mr x nr sums, kc steps, then store
//
// Operands come through functors, so a convolution packs straight from its tensors, and the result leaves
// through one, so it can scatter, accumulate or add a bias. Every element of C is summed in one order, set
// by gemm_k alone: chains of kChain terms in a register, the chains of a kc block one after the other, then block
// by block onto C, whatever tile the element is in.
// Runs serially: it is the body of a parallel_for over blocks of C.
//
// Where C is of 16 bits it cannot hold the sum of some kc blocks: those wait in scratch, for kWaitingRows rows of the
// nc columns at a time, and are rounded once, when the last block is added. Packing has widened the operands, so
// there is one register tile for float. (A tile of 16-bit dot products, vdpbf16ps, would be a second table of micro
// kernels: its panels hold pairs of k in a lane and its sums are the same.)
#pragma once
#include "gemm/panels.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

// Where a tile of C goes. The first kc block overwrites (plus bias, if any), the later ones add.
template <class T>
struct Tile {
  T* data;               // null: not rows of memory, take it through Store::scatter
  int64_t row_stride;    // elements
  int64_t room;          // columns that may be written, >= the tile's: slack saves the detour over scatter
  const T* row_bias;     // one per row, or null
  const T* column_bias;  // one per column, or null
};

// Terms added one after the other. The rounding error of a sum grows with the length of its chains: 64 keeps it at
// torch's level for short sums too. A chain is folded with one load, addition and store for 64 FMAs.
constexpr int64_t kChain = 64;

template <class T>
using MicroKernel = void (*)(int64_t kc, const T* a, const T* b, const Tile<T>& tile, bool first);

// The register tile: kRows x kVectors*lanes sums over kc steps of one A sliver and one B sliver.
template <class T, int kRows, int kVectors, bool kKMajor>
void micro_kernel(int64_t kc, const T* a, const T* b, const Tile<T>& tile, bool first) {
  constexpr int kLane = kLanes<T>;
  constexpr int64_t kRow = kKMajor ? 1 : GemmConfig<T>::kRowStride, kStep = kKMajor ? GemmConfig<T>::kMrPadded : 1;
  // C is next touched kc*kRows*kVectors cycles from now: long enough to come from memory.
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) __builtin_prefetch(tile.data + i * tile.row_stride + v * kLane, 1);

  Vec<T> sum[kRows][kVectors] = {};
  Vec<T> total[kRows][kVectors];  // of the chains before; in memory, touched once per chain
  for (int64_t left = kc; left > 0; left -= kChain) {
    for (int64_t k = at_most(left, kChain); k > 0; --k, a += kStep, b += kVectors * kLane) {
      Vec<T> row[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) row[v] = load(b + v * kLane);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const Vec<T> scalar = broadcast(a[i * kRow]);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sum[i][v] += scalar * row[v];
      }
    }
    if (left <= kChain && left == kc) break;  // one chain: the sums stay in registers
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        total[i][v] = left == kc ? sum[i][v] : total[i][v] + sum[i][v];
        sum[i][v] = left > kChain ? Vec<T>{} : total[i][v];
      }
  }

#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      T* to = tile.data + i * tile.row_stride + v * kLane;
      if (!first)
        sum[i][v] += load(to);
      else if (tile.row_bias)
        sum[i][v] += broadcast(tile.row_bias[i]);
      else if (tile.column_bias)
        sum[i][v] += load(tile.column_bias + v * kLane);
      store(to, sum[i][v]);
    }
  }
}

// micro_kernels<T>()[k_major][vectors - 1][rows - 1]
template <class T, bool kKMajor, int kVectors, int... row>
constexpr void fill_micro_kernels(MicroKernel<T>* table, std::integer_sequence<int, row...>) {
  ((table[row] = &micro_kernel<T, row + 1, kVectors, kKMajor>), ...);
}
template <class T>
struct MicroKernels {
  MicroKernel<T> table[2][2][GemmConfig<T>::kMr] = {};
  constexpr MicroKernels() {
    using Rows = std::make_integer_sequence<int, GemmConfig<T>::kMr>;
    fill_micro_kernels<T, false, 1>(table[0][0], Rows{});
    fill_micro_kernels<T, false, 2>(table[0][1], Rows{});
    fill_micro_kernels<T, true, 1>(table[1][0], Rows{});
    fill_micro_kernels<T, true, 2>(table[1][1], Rows{});
  }
};

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// Part `index` of `parts` nearly equal parts of [0, count), cut at multiples of `grain`.
inline Range part_of(int64_t count, int64_t parts, int64_t index, int64_t grain) {
  const int64_t grains = ceil_div(count, grain);
  return {at_most(count, grains * index / parts * grain), at_most(count, grains * (index + 1) / parts * grain)};
}

// Elements of scratch for blocks of up to this size, one per thread.
template <class T>
inline int64_t gemm_scratch_size(int64_t gemm_n, int64_t gemm_k) {
  using Config = GemmConfig<T>;
  return Config::kASize + Config::kMrPadded +
         panel_size<T>(at_most(gemm_k, Config::kKc), at_most(gemm_n, Config::kNc));
}

// Rows of C whose sums wait for the next kc block, if C is of 16 bits: with nc columns 384 KB, most of half of a 1 MB
// L2. A panel of B is packed anew for each such block of rows, which is little for so many.
template <class T>
constexpr int64_t kWaitingRows = 256 / GemmConfig<T>::kMr * GemmConfig<T>::kMr;
template <class E>
inline int64_t waiting_size(int64_t gemm_m, int64_t gemm_k) {
  using T = Accumulator<E>;
  const bool waits = sizeof(E) == 2 && gemm_k > GemmConfig<T>::kKc;
  return waits ? at_most(gemm_m, kWaitingRows<T>) * GemmConfig<T>::kNc : 0;
}

// One block of C. The functors, with m0, n0, k0 absolute and n0 - n.begin a multiple of nr:
//   const T* pack_a(m0, rows, k0, kc, T* scratch)     an A sliver; pack_a.k_major tells its form
//   const T* pack_b(n0, columns, k0, kc, T* scratch)  a B panel, in scratch or packed beforehand
//   Tile<T>  store.tile(m0, n0, rows, columns)        not asked for if store.rounds
//   void     store.scatter(const T* sums, stride, m0, n0, rows, columns, first)  sums are [rows][stride]
// waiting: waiting_size elements, if store.rounds.
template <class T, class PackA, class PackB, class Store>
void gemm_block(Range m, Range n, int64_t gemm_k, PackA& pack_a, PackB& pack_b, const Store& store, T* scratch,
                T* waiting = nullptr) {
  using Config = GemmConfig<T>;
  static constexpr MicroKernels<T> kMicroKernels;
  T* a_scratch = scratch;
  T* b_scratch = scratch + (Config::kASize + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
  // Rows in equal panels, not whole ones and a rest: a tile of 13 rows runs at the same rate as one of 14.
  const int64_t panels = ceil_div(m.size(), Config::kMr);
  const auto panel_begin = [&](int64_t panel) { return m.begin + m.size() * panel / panels; };
  const bool waits = Store::rounds && gemm_k > Config::kKc;
  const int64_t blocks = waits ? ceil_div(panels, kWaitingRows<T> / Config::kMr) : 1;

  for (int64_t n0 = n.begin; n0 < n.end; n0 += Config::kNc) {
    const int64_t columns = at_most(Config::kNc, n.end - n0);
    for (int64_t block = 0; block < blocks; ++block) {
      const Range of_block{panels * block / blocks, panels * (block + 1) / blocks};
      int64_t k0 = 0;
      do {  // once even if gemm_k is 0: C is then zero or bias
        const int64_t kc = at_most(Config::kKc, gemm_k - k0);
        const bool first = k0 == 0, last = k0 + kc >= gemm_k;
        const T* b_panel = pack_b(n0, columns, k0, kc, b_scratch);
        for (int64_t panel = of_block.begin; panel < of_block.end; ++panel) {
          const int64_t m0 = panel_begin(panel);
          const int rows = int(panel_begin(panel + 1) - m0);
          const T* a_sliver = pack_a(m0, rows, k0, kc, a_scratch);
          const T* b_sliver = b_panel;
          for (int64_t j = 0; j < columns; j += Config::kNr, b_sliver += sliver_stride<T>(kc)) {
            const int64_t count = at_most(Config::kNr, columns - j);
            const int width = sliver_width<T>(count);
            const MicroKernel<T> micro = kMicroKernels.table[pack_a.k_major][width / kLanes<T> - 1][rows - 1];
            alignas(64) T sums[Config::kMr * Config::kNr];
            if constexpr (Store::rounds) {
              T* to = waits ? waiting + (m0 - panel_begin(of_block.begin)) * Config::kNc + j : sums;
              const int64_t stride = waits ? Config::kNc : Config::kNr;
              micro(kc, a_sliver, b_sliver, {to, stride, width, nullptr, nullptr}, first);
              if (last) store.scatter(to, stride, m0, n0 + j, rows, count, true);
            } else {
              const Tile<T> tile = store.tile(m0, n0 + j, rows, count);
              if (tile.data && tile.room >= width) {
                micro(kc, a_sliver, b_sliver, tile, first);
              } else {
                micro(kc, a_sliver, b_sliver, {sums, Config::kNr, width, nullptr, nullptr}, true);
                store.scatter(sums, Config::kNr, m0, n0 + j, rows, count, first);
              }
            }
          }
        }
        k0 += kc;
      } while (k0 < gemm_k);
    }
  }
}

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
