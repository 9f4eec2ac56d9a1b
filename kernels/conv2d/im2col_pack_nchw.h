// Packing for nchw: cols[(channel, tap), pixel], where pixels are contiguous along w.
//
//   cols[(channel, i_tap, j_tap), (n, i, j)] = source[n, channel, i*step + i_tap*offset_step + offset, ...] or 0
//
// The pixels of a block are cut once into pieces: at most one vector of neighbours of one output row. Then each
// row of cols is one masked load and one store a piece, whatever the image's width. Elements E become T, which differs
// where E has 16 bits.
#pragma once
#include "conv2d/im2col_map.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

struct Piece {
  int64_t to;     // place in the panel, in elements, at the first row
  int64_t width;  // elements from one row of the panel to the next
  int64_t image;  // offset of the image, in elements
  int64_t h, w;   // source place of the first pixel at offset 0
};

template <class E>
struct Pieces {
  using T = Accumulator<E>;
  // A row of one pixel makes a piece of one pixel.
  static constexpr int64_t kMost =
      GemmConfig<T>::kNc > GemmConfig<T>::kKc ? GemmConfig<T>::kNc : GemmConfig<T>::kKc;
  Piece piece[kMost];
  int64_t count;

  // Pixels [begin, begin + pixels) of the map, `to(pixel)` elements into the panel. A piece never crosses a
  // multiple of `cut` pixels.
  template <class To>
  void build(const Axis& h, const Axis& w, int64_t image_stride, int64_t begin, int64_t pixels, int64_t cut,
             const To& to) {
    count = 0;
    Place place(begin, h, w);
    for (int64_t done = 0; done < pixels;) {
      const int64_t run =
          at_most(at_most(kLanes<T>, w.places - place.j), at_most(pixels - done, cut - done % cut));
      Piece& next = piece[count++];
      to(done, &next.to, &next.width);
      next.image = place.image * image_stride;
      next.h = place.i * h.step + h.offset;
      next.w = place.j * w.step + w.offset;
      place.advance(run, h, w);
      done += run;
    }
  }

  // A piece is too short for the hardware to see the next channel coming.
  void prefetch(const E* plane, const Axis& w) const {
    for (int64_t i = 0; i < count; ++i)
      __builtin_prefetch(plane + piece[i].image + piece[i].h * w.extent + piece[i].w);
  }

  // One row of cols. Lanes past the end of a piece are written too; the next piece, or the next row, covers them.
  template <int kStep>
  void pack_row(T* panel, int64_t row, const E* plane, int64_t dh, int64_t dw, const Axis& h,
                const Axis& w) const {
    for (int64_t i = 0; i < count; ++i) {
      const Piece& at = piece[i];
      T* to = panel + at.to + row * at.width;
      const int64_t from = at.h + dh;
      store(to, inside(from, h.extent)
                    ? load_strided<kStep>(plane + at.image + from * w.extent, at.w + dw, w.extent, w.step)
                    : Vec<T>{});
    }
  }
};

// Rows [k0, k0 + rows) of cols, in order; row `k` is (channel, i_tap, j_tap) flattened, j_tap innermost.
template <int kStep, class E>
void pack_rows(const Pieces<E>& pieces, Accumulator<E>* panel, int64_t panel_row, const E* source,
               int64_t channel_stride, const Axis& h, const Axis& w, int64_t k0, int64_t rows) {
  if (rows == 0) return;
  int64_t channel = k0 / (h.taps * w.taps), i_tap = k0 / w.taps % h.taps, j_tap = k0 % w.taps;
  // 8 rows of cols are about 1000 cycles of packing, enough for memory to answer.
  const int64_t ahead = at_least(1, 8 / (h.taps * w.taps)) * channel_stride;
  for (int64_t row = 0; row < rows; ++row) {
    if (i_tap == 0 && j_tap == 0) pieces.prefetch(source + channel * channel_stride + ahead, w);
    pieces.template pack_row<kStep>(panel + row * panel_row, row, source + channel * channel_stride,
                                    i_tap * h.offset_step, j_tap * w.offset_step, h, w);
    if (++j_tap == w.taps) {
      j_tap = 0;
      if (++i_tap == h.taps) i_tap = 0, ++channel;
    }
  }
}

template <class E>
void pack_rows(const Pieces<E>& pieces, Accumulator<E>* panel, int64_t panel_row, const E* source,
               int64_t channel_stride, const Axis& h, const Axis& w, int64_t k0, int64_t rows) {
  auto pack = w.step == 1   ? pack_rows<1, E>
              : w.step == 2 ? pack_rows<2, E>
              : w.step == 4 ? pack_rows<4, E>
                            : pack_rows<0, E>;
  pack(pieces, panel, panel_row, source, channel_stride, h, w, k0, rows);
}

// The B panel of fprop and dgrad: kc rows of cols by nc pixels, in slivers.
template <class E>
struct PackColsB {
  using T = Accumulator<E>;
  const Gather<E>& map;
  Pieces<E> pieces;
  int64_t built_n0 = -1, built_kc = -1;

  explicit PackColsB(const Gather<E>& gather) : map(gather) {}
  const T* operator()(int64_t n0, int64_t columns, int64_t k0, int64_t kc, T* panel) {
    if (n0 != built_n0 || kc != built_kc) {
      pieces.build(map.h, map.w, map.source_image, n0, columns, GemmConfig<T>::kNr,
                   [&](int64_t pixel, int64_t* to, int64_t* width) {
                     const int64_t sliver = pixel / GemmConfig<T>::kNr;
                     *to = sliver * sliver_stride<T>(kc) + pixel % GemmConfig<T>::kNr;
                     *width = sliver_width<T>(columns - sliver * GemmConfig<T>::kNr);
                   });
      built_n0 = n0, built_kc = kc;
    }
    pack_rows(pieces, panel, 0, map.source, map.source_channel, map.h, map.w, k0, kc);
    return panel;
  }
};

// The A sliver of fprop and dgrad: `rows` output channels of the filter by kc (channel, tap).
template <class E>
struct PackWeightsA {
  using T = Accumulator<E>;
  const Gather<E>& map;
  bool k_major;  // neighbours in m are contiguous: the 1x1 filter of dgrad, w[k][c]

  explicit PackWeightsA(const Gather<E>& gather) : map(gather), k_major(gather.weights_m == 1) {}
  const T* operator()(int64_t m0, int rows, int64_t k0, int64_t kc, T* sliver) const {
    const E* from = map.weights + m0 * map.weights_m;
    if (k_major) {
      for (int64_t k = 0; k < kc; ++k)
        copy_run(sliver + k * GemmConfig<T>::kMrPadded, from + (k0 + k) * map.weights_channel, rows);
    } else {
      for (int i = 0; i < rows; ++i)
        copy_run_prefetching(sliver + i * GemmConfig<T>::kRowStride, from + i * map.weights_m + k0, kc,
                             rows * map.weights_m);
    }
    return sliver;
  }
};

// dgrad's filter as a matrix: rows[m][(channel, tap)] from w[channel][m][r][s], for the taps of one residue class.
// Packs rows [m0, m0 + count): they are read together, since one channel's taps of neighbouring m lie together.
template <class E>
void reorder_weights(const Gather<E>& map, int64_t m0, int64_t count, E* rows) {
  const Axis &h = map.h, &w = map.w;
  const int64_t taps = map.taps(), row_size = map.gemm_k();
  const bool all_taps = taps == map.filter_taps && h.tap_step == 1 && w.tap_step == 1;
  for (int64_t channel = 0; channel < map.channels; ++channel) {
    const E* from = map.weights + channel * map.weights_channel + m0 * map.weights_m;
    E* to = rows + m0 * row_size + channel * taps;
    for (int64_t i = 0; i < count; ++i, from += map.weights_m, to += row_size) {
      if (all_taps) {
        std::memcpy(to, from, size_t(taps) * sizeof(E));
        continue;
      }
      E* next = to;
      for (int64_t i_tap = 0; i_tap < h.taps; ++i_tap) {
        const E* at = from + (h.first_tap + i_tap * h.tap_step) * map.weights_r + w.first_tap * map.weights_s;
        for (int64_t j_tap = 0; j_tap < w.taps; ++j_tap) *next++ = at[j_tap * w.tap_step * map.weights_s];
      }
    }
  }
}

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
