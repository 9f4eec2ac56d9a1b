// wgrad:  dw[k, (c,r,s)] = sum over pixels of dy[k, pixel] * cols[(c,r,s), pixel]
//
// nchw: both operands are contiguous along the pixels, the sum. The product is taken as
//   dwT[(c,r,s), k] = cols[(c,r,s), pixels] * dyT[pixels, k]
//       cols rows are A slivers in row form (masked copies); dy is transposed in registers into B panels, once for
//       all its (c,r,s) rows.
// nhwc: both are contiguous across the sum.
//   dw[k, (r,s,c)] = dyT[k, pixels] * cols[pixels, (r,s,c)]
//       both pack as copies: dy as k-major A slivers, cols as B panels.
//
// The pixels of all images are cut into chunks, from the problem alone; each chunk has its own partial dw, and the
// partials are added in order. Within a chunk a sum is kc terms in a register, then block by block.
#pragma once
#include "conv2d/im2col_pack_nchw.h"
#include "conv2d/im2col_pack_nhwc.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

struct WgradConfig {
  // Partial sums together: what the L3 takes without losing x and dy.
  static constexpr int64_t kPartialBytes = 4 << 20;
};

template <class T>
struct StorePartial {
  static constexpr bool rounds = false;
  T* partial;
  int64_t row_stride;  // whole slivers, so that every tile is whole
  Tile<T> tile(int64_t m0, int64_t n0, int, int64_t) const {
    return {partial + m0 * row_stride + n0, row_stride, row_stride - n0, nullptr, nullptr};
  }
  void scatter(const T*, int64_t, int64_t, int64_t, int, int64_t, bool) const {
  }  // never: row_stride is whole slivers
};

// ---- nchw --------------------------------------------------------------------------------------------

template <class E>
struct PackColsRowsA {
  using T = Accumulator<E>;
  static constexpr bool k_major = false;
  const Gather<E>& map;  // rows of cols are (channel, tap); the sum runs over its pixels
  Pieces<E> pieces;
  int64_t pixel0;  // of the chunk
  int64_t built_k0 = -1;

  PackColsRowsA(const Gather<E>& gather, int64_t chunk_begin) : map(gather), pixel0(chunk_begin) {}
  const T* operator()(int64_t m0, int rows, int64_t k0, int64_t kc, T* sliver) {
    if (kc == 0) return sliver;
    if (k0 != built_k0) {
      pieces.build(map.h, map.w, map.source_image, pixel0 + k0, kc, kc,
                   [](int64_t pixel, int64_t* to, int64_t* width) { *to = pixel, *width = 0; });
      built_k0 = k0;
    }
    pack_rows(pieces, sliver, GemmConfig<T>::kRowStride, map.source, map.source_channel, map.h, map.w, m0, rows);
    return sliver;
  }
};

template <class E>
struct PackPlanesB {
  using T = Accumulator<E>;
  const E* dy;  // [n][k][plane], at the group's first k
  int64_t image_stride, plane, pixel0;

  const T* operator()(int64_t n0, int64_t columns, int64_t k0, int64_t kc, T* panel) const {
    for (int64_t j = 0; j < columns; j += GemmConfig<T>::kNr) {
      T* sliver = panel + j / GemmConfig<T>::kNr * sliver_stride<T>(kc);
      const int64_t count = at_most(GemmConfig<T>::kNr, columns - j);
      const int width = sliver_width<T>(count);
      for (int64_t done = 0; done < kc;) {
        const int64_t image = (pixel0 + k0 + done) / plane, pixel = (pixel0 + k0 + done) % plane;
        const int64_t run = at_most(plane - pixel, kc - done);
        pack_transposed(sliver + done * width, width, dy + image * image_stride + (n0 + j) * plane + pixel, plane,
                        count, run);
        done += run;
      }
    }
    return panel;
  }
};

// ---- nhwc --------------------------------------------------------------------------------------------

template <class E>
struct PackFiltersA {
  using T = Accumulator<E>;
  static constexpr bool k_major = true;
  const E* dy;  // [pixel][k], at the group's first k
  int64_t pixel_stride, pixel0;

  const T* operator()(int64_t m0, int rows, int64_t k0, int64_t kc, T* sliver) const {
    const E* from = dy + (pixel0 + k0) * pixel_stride + m0;
    for (int64_t k = 0; k < kc; ++k, from += pixel_stride)
      copy_run(sliver + k * GemmConfig<T>::kMrPadded, from, rows);
    return sliver;
  }
};

// A B panel: kc pixels by nc of (i_tap, j_tap, channel), cut once into pieces of at most a vector of one run.
template <class E>
struct PackColsPanelB {
  using T = Accumulator<E>;
  struct ColumnPiece {
    int64_t to, width, h, element;
  };
  const Gather<E>& map;
  Runs runs;
  int64_t first_channel, pixel0;
  ColumnPiece piece[GemmConfig<T>::kNc];

  PackColsPanelB(const Gather<E>& gather, int64_t group_channel, int64_t chunk_begin)
      : map(gather),
        runs(gather.w, gather.channels, gather.source_pixel),
        first_channel(group_channel),
        pixel0(chunk_begin) {}

  const T* operator()(int64_t n0, int64_t columns, int64_t k0, int64_t kc, T* panel) {
    using Config = GemmConfig<T>;
    const Axis &h = map.h, &w = map.w;
    if (kc == 0) return panel;
    int64_t count = 0;
    for (int64_t done = 0; done < columns;) {
      const int64_t run = (n0 + done) / runs.length, within = (n0 + done) % runs.length;
      const int64_t sliver = done / Config::kNr, place = done % Config::kNr;
      ColumnPiece& next = piece[count++];
      next.to = sliver * sliver_stride<T>(kc) + place;
      next.width = sliver_width<T>(columns - sliver * Config::kNr);
      next.h = run / runs.per_row * h.offset_step + h.offset;
      next.element = (run % runs.per_row * w.offset_step + w.offset) * runs.pixel + first_channel + within;
      done += at_most(at_most(kLanes<T>, runs.length - within), at_most(columns - done, Config::kNr - place));
    }
    Place place(pixel0 + k0, h, w);
    for (int64_t k = 0; k < kc; ++k, place.advance(1, h, w)) {
      const E* image = map.source + place.image * map.source_image;
      const int64_t h0 = place.i * h.step, element0 = place.j * w.step * runs.pixel;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t from = h0 + piece[i].h;
        store(panel + piece[i].to + k * piece[i].width,
              inside(from, h.extent)
                  ? load_between(image + from * runs.row_elements, element0 + piece[i].element, runs.row_elements)
                  : Vec<T>{});
      }
    }
    return panel;
  }
};

// ---- Driver ------------------------------------------------------------------------------------------

// Units of wgrad: chunks of pixels first (they repeat no packing), as far as their partials stay small; then
// blocks of gemm_m, down to 8 panels.
template <class T>
inline Units wgrad_units(int64_t gemm_m, int64_t gemm_n, int64_t pixels, int64_t groups) {
  using Config = GemmConfig<T>;
  const int64_t wanted = units_wanted(gemm_m, gemm_n, pixels, groups);
  const int64_t partial = groups * gemm_m * ceil_div(gemm_n, Config::kNr) * Config::kNr * int64_t(sizeof(T));
  const int64_t most = at_least(1, WgradConfig::kPartialBytes / partial);
  const int64_t chunks = at_least(1, at_most(at_most(wanted, most), pixels / Config::kKc));
  const int64_t m_blocks = at_least(1, at_most(ceil_div(wanted, chunks), gemm_m / (8 * Config::kMr)));
  return {m_blocks, 1, chunks};
}

template <class E>
void wgrad(const Conv2dProblem& problem, const Gather<E>& map, const E* dy, E* dw, Accumulator<E>* workspace) {
  using T = Accumulator<E>;
  using Config = GemmConfig<T>;
  const bool nchw = problem.layout == kNchw;
  const int64_t groups = problem.groups, group_k = problem.group_k(), crs = map.gemm_k();
  const int64_t plane = problem.p() * problem.q(), pixels = problem.n * plane;
  const int64_t gemm_m = nchw ? crs : group_k, gemm_n = nchw ? group_k : crs;
  const Units units = wgrad_units<T>(gemm_m, gemm_n, pixels, groups);
  const int64_t row_stride = ceil_div(gemm_n, Config::kNr) * Config::kNr, partial_size = gemm_m * row_stride;
  const int64_t scratch = gemm_scratch_size<T>(gemm_n, pixels);
  T* partials = workspace;
  workspace += groups * units.chunks * partial_size;

  parallel_for(groups * units.count(), [&](int64_t index, int thread) {
    const int64_t m_block = index % units.m, chunk = index / units.m % units.chunks, group = index / units.count();
    const Range m = part_of(gemm_m, units.m, m_block, 1), sum = part_of(pixels, units.chunks, chunk, 1);
    const StorePartial<T> to{partials + (group * units.chunks + chunk) * partial_size, row_stride};
    T* const own = workspace + thread * scratch;
    if (nchw) {
      Gather<E> part = map;
      part.source += group * map.channels * map.source_channel;
      PackColsRowsA<E> pack_a(part, sum.begin);
      const PackPlanesB<E> pack_b{dy + group * group_k * plane, problem.k * plane, plane, sum.begin};
      gemm_block<T>(m, {0, gemm_n}, sum.size(), pack_a, pack_b, to, own);
    } else {
      const PackFiltersA<E> pack_a{dy + group * group_k, problem.k, sum.begin};
      PackColsPanelB<E> pack_b(map, group * map.channels, sum.begin);
      gemm_block<T>(m, {0, gemm_n}, sum.size(), pack_a, pack_b, to, own);
    }
  });

  // dw = the partials in order of their chunks, rounded if it is of 16 bits; nchw partials are transposed, a block of lanes x lanes at a time.
  const int64_t blocks = ceil_div(group_k, kLanes<T>);
  parallel_for(groups * blocks, [&](int64_t index, int) {
    const int64_t group = index / blocks, k0 = index % blocks * kLanes<T>,
                  count = at_most(kLanes<T>, group_k - k0);
    const T* from = partials + group * units.chunks * partial_size;
    E* to = dw + (group * group_k + k0) * crs;
    for (int64_t j = 0; j < crs; j += kLanes<T>) {
      const int lanes = int(at_most(kLanes<T>, crs - j));
      Vec<T> total[kLanes<T>];
      const int rows = nchw ? lanes : int(count);
      const T* block = nchw ? from + j * row_stride + k0 : from + k0 * row_stride + j;
      for (int i = 0; i < kLanes<T>; ++i) {
        total[i] = Vec<T>{};
        if (i >= rows) continue;
        total[i] = load(block + i * row_stride);
        for (int64_t chunk = 1; chunk < units.chunks; ++chunk)
          total[i] += load(block + chunk * partial_size + i * row_stride);
      }
      if (nchw) transpose<T>(total);
      for (int i = 0; i < count; ++i) store_partial<E>(to + i * crs + j, total[i], lanes);
    }
  });
}

template <class E>
inline int64_t wgrad_workspace(const Conv2dProblem& problem, int threads) {
  using T = Accumulator<E>;
  const int64_t crs = problem.group_c() * problem.r * problem.s, group_k = problem.group_k();
  const int64_t pixels = problem.n * problem.p() * problem.q();
  const int64_t gemm_m = problem.layout == kNchw ? crs : group_k, gemm_n = problem.layout == kNchw ? group_k : crs;
  const Units units = wgrad_units<T>(gemm_m, gemm_n, pixels, problem.groups);
  const int64_t elements =
      problem.groups * units.chunks * gemm_m * ceil_div(gemm_n, GemmConfig<T>::kNr) * GemmConfig<T>::kNr +
      gemm_scratch_size<T>(gemm_n, pixels) * threads;
  return elements * int64_t(sizeof(T));
}

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
