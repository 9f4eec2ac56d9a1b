// Winograd convolution of 3x3 filters at stride 1, in float: F(2x2, 3x3) and F(4x4, 3x3), as three transforms around a
// product of matrices.
//
//   filter   U[f][in][out]  = (G g G^T)[f]      g = w[k,c,:,:]; dgrad: turned by 180 degrees
//   input    V[f][in][tile] = (B^T d B)[f]      d: the (M+2) x (M+2) inputs of a tile of M x M outputs, 0 outside
//   product  P[f][out][tile] = sum over in of U[f][in][out] * V[f][in][tile]          gemm/, (M+2)^2 products
//   output   y of a tile    = A^T P A + bias
//
// winograd.h has the matrices. "in" and "out" are c and k in fprop, k and c in dgrad, which is the same convolution of
// dy, with padding 2 - pad (or a crop, where that is negative). f stands for one of the (M+2)^2 places of a
// transformed tile. With groups, each has its own U, V and P.
//
// Memory: U and V have lines along out and along tiles in either layout, which is the form that the product copies in
// 16-byte pieces. P has the lines of the output tensor: tiles (nchw) or channels (nhwc). A chunk of the tiles at a time
// (winograd_launch.py), numbered image after image, row after row.
//
// Thread:  one channel of one tile, or one filter of one channel; the input transform in nhwc: kVector channels.
// Lanes:   run along what memory has side by side. Where read and written lines run differently, 8 lanes one way and 4
//          the other: 32 bytes, a sector, each way, so DRAM moves nothing twice; what a warp leaves of a line of the
//          input, the next warp of its block finds in L1.
//
// All three are bound by DRAM: a thread takes 10 to 17 instructions for 4 bytes that it moves, where an H100 has the time
// for 40 (4 warps' instructions and 12.8 bytes of DRAM a cycle for each multiprocessor).
//
// After A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural Networks (2016), section 4.1.
#include "common/vector.h"
#include "conv2d/gather.cuh"
#include "conv2d/tensor.cuh"
#include "conv2d/winograd.cuh"
#include "conv2d/winograd_plan.cuh"

namespace pyconv {

constexpr int kWinogradThreads = 256;

// A thread's place among items in rows, of which a block takes ACROSS by kWinogradThreads / ACROSS.
struct WinogradItem {
  int across, row;
};

template <int ACROSS>
PYCONV_DEVICE WinogradItem winograd_item(int items_across) {
  const int blocks_across = int(ceil_div(items_across, ACROSS));
  return {int(blockIdx.x % blocks_across) * ACROSS + int(threadIdx.x % ACROSS),
          int(blockIdx.x / blocks_across) * (kWinogradThreads / ACROSS) + int(threadIdx.x / ACROSS)};
}

// ---- Filters ------------------------------------------------------------------------------------------

constexpr int kFilterAcross = 8;  // lanes along out; the other 4 of a warp along in

template <int M, Layout kLayout, Pass kPass>
__global__ void __launch_bounds__(kWinogradThreads)
    winograd_filter(WinogradPlan plan, const float* __restrict__ w, float* __restrict__ u) {
  constexpr int kSide = M + 2;
  const WinogradItem item = winograd_item<kFilterAcross>(plan.out_channels);
  const int out = item.across, in = item.row % plan.in_channels, group = item.row / plan.in_channels;
  if (out >= plan.out_channels || group >= plan.groups) return;

  const Tensor<const float, kLayout> filters(w, kPass == kFprop ? plan.in_channels : plan.out_channels, 3, 3);
  const int k = kPass == kFprop ? group * plan.out_channels + out : group * plan.in_channels + in;
  const int c = kPass == kFprop ? in : out;
  float columns[3][kSide];  // of G g, whose row i is columns[.][i]
  PYCONV_UNROLL
  for (int s = 0; s < 3; ++s) {
    float taps[3];
    PYCONV_UNROLL
    for (int r = 0; r < 3; ++r) taps[r] = kPass == kFprop ? filters(k, c, r, s) : filters(k, c, 2 - r, 2 - s);
    transform_filter<M>(taps, columns[s]);
  }
  u += winograd_line(group, kSide * kSide, plan.in_channels, in, plan.u_pitch) + out;
  const int64_t next = int64_t(plan.in_channels) * plan.u_pitch;
  PYCONV_UNROLL
  for (int i = 0; i < kSide; ++i) {
    const float row[3] = {columns[0][i], columns[1][i], columns[2][i]};
    float transformed[kSide];
    transform_filter<M>(row, transformed);
    PYCONV_UNROLL
    for (int j = 0; j < kSide; ++j) u[(i * kSide + j) * next] = transformed[j];
  }
}

// ---- Input --------------------------------------------------------------------------------------------

template <Layout kLayout>
constexpr int kInputAcross = kLayout == kNhwc ? 8 : 32;  // lanes along tiles

template <int M, Layout kLayout, int kVector>
__global__ void __launch_bounds__(kWinogradThreads, 2)
    winograd_input(WinogradPlan plan, const float* __restrict__ x, float* __restrict__ v) {
  constexpr int kSide = M + 2;
  const WinogradItem item = winograd_item<kInputAcross<kLayout>>(plan.tiles);
  const int tile = item.across, channel = item.row * kVector, channels = plan.groups * plan.in_channels;
  if (tile >= plan.tiles || channel >= channels) return;

  const WinogradTile at = winograd_tile<M>(plan, tile);
  const int first_row = at.row - plan.pad_top, first_column = at.column - plan.pad_left;
  const Tensor<const float, kLayout> input(x, channels, plan.in_rows, plan.in_columns);
  x += input.offset(at.image, channel, first_row, first_column);  // perhaps outside: read only where it is not
  const int64_t column_stride = kLayout == kNhwc ? channels : 1, row_stride = plan.in_columns * column_stride;
  float columns[kVector][kSide][kSide];  // of B^T d, whose row i is columns[.][.][i]
  PYCONV_UNROLL
  for (int j = 0; j < kSide; ++j) {
    const bool is_column = unsigned(first_column + j) < unsigned(plan.in_columns);
    const float* from = x + j * column_stride;
    float inputs[kVector][kSide];
    PYCONV_UNROLL
    for (int i = 0; i < kSide; ++i) {
      Vector<float, kVector> element = {};
      if (is_column && unsigned(first_row + i) < unsigned(plan.in_rows)) element = load_vector<kVector>(from);
      from += row_stride;
      PYCONV_UNROLL
      for (int e = 0; e < kVector; ++e) inputs[e][i] = element.element[e];
    }
    PYCONV_UNROLL
    for (int e = 0; e < kVector; ++e) transform_input<M>(inputs[e], columns[e][j]);
  }

  const int64_t next = int64_t(plan.in_channels) * plan.v_pitch;
  PYCONV_UNROLL
  for (int e = 0; e < kVector; ++e) {  // a vector's channels are of one group
    const int group = channel / plan.in_channels, in = channel % plan.in_channels + e;
    float* to = v + winograd_line(group, kSide * kSide, plan.in_channels, in, plan.v_pitch) + tile;
    PYCONV_UNROLL
    for (int i = 0; i < kSide; ++i) {
      float row[kSide], transformed[kSide];
      PYCONV_UNROLL
      for (int j = 0; j < kSide; ++j) row[j] = columns[e][j][i];
      transform_input<M>(row, transformed);
      PYCONV_UNROLL
      for (int j = 0; j < kSide; ++j) to[(i * kSide + j) * next] = transformed[j];
    }
  }
}

// ---- Output -------------------------------------------------------------------------------------------

constexpr int kOutputAcross = 32;  // lanes along the lines of P: tiles (nchw) or channels (nhwc)

template <int M, Layout kLayout>
__global__ void __launch_bounds__(kWinogradThreads, 2)
    winograd_output(WinogradPlan plan, const float* __restrict__ product, const float* __restrict__ bias,
                    float* __restrict__ y) {
  constexpr int kSide = M + 2;
  const int channels = plan.groups * plan.out_channels;
  const WinogradItem item = winograd_item<kOutputAcross>(kLayout == kNhwc ? channels : plan.tiles);
  const int tile = kLayout == kNhwc ? item.row : item.across;
  const int channel = kLayout == kNhwc ? item.across : item.row;
  if (tile >= plan.tiles || channel >= channels) return;

  const int group = channel / plan.out_channels, out = channel % plan.out_channels;
  const int lines = kLayout == kNhwc ? plan.tiles : plan.out_channels, line = kLayout == kNhwc ? tile : out;
  product += winograd_line(group, kSide * kSide, lines, line, plan.p_pitch) + (kLayout == kNhwc ? out : tile);
  const int64_t next = int64_t(lines) * plan.p_pitch;
  float columns[kSide][M];  // of A^T P, whose row i is columns[.][i]
  PYCONV_UNROLL
  for (int j = 0; j < kSide; ++j) {
    float at_points[kSide];
    PYCONV_UNROLL
    for (int i = 0; i < kSide; ++i) at_points[i] = product[(i * kSide + j) * next];
    transform_output<M>(at_points, columns[j]);
  }

  const WinogradTile at = winograd_tile<M>(plan, tile);
  const Tensor<float, kLayout> output(y, channels, plan.out_rows, plan.out_columns);
  y += output.offset(at.image, channel, at.row, at.column);
  const int64_t column_stride = kLayout == kNhwc ? channels : 1, row_stride = plan.out_columns * column_stride;
  const float offset = bias ? bias[channel] : 0;
  PYCONV_UNROLL
  for (int i = 0; i < M; ++i, y += row_stride) {
    if (at.row + i >= plan.out_rows) break;
    float row[kSide];
    Vector<float, M> outputs;
    PYCONV_UNROLL
    for (int j = 0; j < kSide; ++j) row[j] = columns[j][i];
    transform_output<M>(row, outputs.element);
    PYCONV_UNROLL
    for (int j = 0; j < M; ++j) outputs.element[j] += offset;
    // If the columns are whole tiles, the outputs of a row are aligned to them.
    if (kLayout == kNchw && plan.out_columns % M == 0) {
      store_vector(y, outputs);
      continue;
    }
    float* to = y;
    PYCONV_UNROLL
    for (int j = 0; j < M; ++j, to += column_stride)
      if (at.column + j < plan.out_columns) *to = outputs.element[j];
  }
}

}  // namespace pyconv
