// Packing filters for the direct kernels: once per call, so that the inner loops read w in one ascending stream.
//
//   nhwc   panel[class][in block][tap row][tap column][in][nr]   nr output channels in vector lanes, the rest 0
//   nchw   panel[class][in][tap row][tap column][mr]             mr output channels, one broadcast each
//
// One panel holds all classes of its output channels (index_map.h). fprop turns rows of w into lanes, which is a
// transposition; dgrad reads w with the roles of c and k exchanged. Panels hold what the tiles multiply: elements E of
// 16 bits are widened to T, a float, on the way.
#pragma once
#include "common/transpose.h"
#include "index_map.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

// to[col*to_stride + row] = from[row*from_stride + col] for row < rows, 0 for rows <= row < padded_rows.
template <class T, class E>
[[gnu::noinline]] void pack_transposed(T* to, int64_t to_stride, const E* from, int64_t from_stride, int64_t rows,
                                       int64_t cols, int64_t padded_rows) {
  constexpr int64_t L = kLanes<T>;
  for (int64_t row = 0; row < padded_rows; row += L) {
    const int lanes = int(std::min(L, padded_rows - row));
    for (int64_t col = 0; col < cols; col += L) {
      const int count = int(std::min(L, cols - col));
      Vec<T> block[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) {
        const E* source = from + (row + i) * from_stride + col;
        block[i] = row + i >= rows ? Vec<T>{} : count == L ? load(source) : load_partial(source, count);
      }
      transpose<T>(block);
      T* target = to + col * to_stride + row;
      for (int i = 0; i < count; ++i) {
        lanes == L ? store(target + i * to_stride, block[i])
                   : store_partial(target + i * to_stride, block[i], lanes);
      }
    }
  }
}

// Output channels [out, out + count) of the group, nr lanes, in blocks of in_block input channels.
template <class T, class E>
void pack_nhwc_panel(const Gather& g, const E* w, int64_t group, int64_t out, int64_t count, int64_t nr,
                     int64_t in_block, T* panel) {
  const E* w_panel = w + group * g.w_g_stride + out * g.w_out_stride;
  for_each_class(g, [&](const AxisMap& rows, const AxisMap& cols, int64_t taps_before) {
    T* to = panel + taps_before * g.in_c * nr;
    if (!g.dgrad && in_block >= g.in_c)  // r, s, c are contiguous in w and wanted in that order
      return pack_transposed(to, nr, w_panel, g.w_out_stride, count, g.taps * g.in_c, nr);
    for (int64_t in = 0; in < g.in_c; in += in_block) {
      const int64_t block = std::min(in_block, g.in_c - in);
      for (int64_t tap_row = 0; tap_row < rows.taps; ++tap_row) {
        for (int64_t tap_col = 0; tap_col < cols.taps; ++tap_col) {
          const E* from = w_panel + in * g.w_in_stride +
                          (rows.tap_origin + tap_row * rows.tap_step) * g.w_r_stride +
                          (cols.tap_origin + tap_col * cols.tap_step) * g.w_s_stride;
          if (!g.dgrad) {
            pack_transposed(to, nr, from, g.w_out_stride, count, block, nr);
          } else {
            for (int64_t i = 0; i < block; ++i) {
              for (int64_t lane = 0; lane < nr; lane += kLanes<T>) {
                const int64_t valid = std::clamp<int64_t>(count - lane, 0, kLanes<T>);
                const E* source = from + i * g.w_in_stride + lane;
                store(to + i * nr + lane, valid == kLanes<T> ? load(source) : load_partial(source, int(valid)));
              }
            }
          }
          to += block * nr;
        }
      }
    }
  });
}

// Output channels [out, out + mr) of the group. Returns whether all their weights are finite.
template <class T, class E>
bool pack_nchw_panel(const Gather& g, const E* w, int64_t group, int64_t out, int64_t mr, T* panel) {
  const E* w_panel = w + group * g.w_g_stride + out * g.w_out_stride;
  int64_t size = 0;
  for_each_class(g, [&](const AxisMap& rows, const AxisMap& cols, int64_t taps_before) {
    const int64_t taps = rows.taps * cols.taps;
    T* to = panel + taps_before * g.in_c * mr;
    size += taps * g.in_c * mr;
    if (!g.dgrad) {  // c, r, s are contiguous in w and wanted in that order
      pack_transposed(to, mr, w_panel, g.w_out_stride, mr, g.in_c * taps, mr);
    } else if (taps == g.taps) {  // stride 1: all taps, last first
      for (int64_t in = 0; in < g.in_c; ++in, to += taps * mr)
        pack_transposed(to + (taps - 1) * mr, -mr, w_panel + in * g.w_in_stride, g.w_out_stride, mr, taps, mr);
    } else {
      for (int64_t in = 0; in < g.in_c; ++in)
        for (int64_t tap_row = 0; tap_row < rows.taps; ++tap_row)
          for (int64_t tap_col = 0; tap_col < cols.taps; ++tap_col) {
            const E* from = w_panel + in * g.w_in_stride +
                            (rows.tap_origin + tap_row * rows.tap_step) * g.w_r_stride +
                            (cols.tap_origin + tap_col * cols.tap_step) * g.w_s_stride;
            for (int64_t i = 0; i < mr; ++i) *to++ = widen(from[i * g.w_out_stride]);
          }
    }
  });
  Vec<T> sum = {};  // 0*w is 0 for a finite w, NaN otherwise
  int64_t i = 0;
  for (; i + kLanes<T> <= size; i += kLanes<T>) sum += load(panel + i) * broadcast(T(0));
  if (i < size) sum += load_partial(panel + i, int(size - i)) * broadcast(T(0));
  return horizontal_sum<T>(sum) == 0;
}

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
