// Winograd F(2x2, 3x3) in one kernel: fprop and dgrad of 3x3 filters at stride 1, in float. V and P of winograd.cu never
// reach memory, which bounds that kernel below some 180 channels.
//
//   y of a tile = A^T [ sum over in of U[f][in][out] * (B^T d B)[f] ] A + bias       f: 4 x 4 places
//
// U, the transformed filters, is made by winograd_filter of winograd.cu, once a call, and lies in the L2 cache.
//
// Block:   32 filters x 32 tiles of 2x2 outputs, all 16 places; 8 channels at a time.
// Stage:   each thread loads the 4 x 4 inputs of one tile and channel, transforms them and puts them into shared memory;
//          4 cp.async of 16 bytes each bring U.
// Multiply: a thread has one place f, 8 filters and 8 tiles: 64 sums, and for 64 FMAs 4 loads of 16 bytes. The lanes of a
//          quarter of a warp read 64 (V) and 32 (U) bytes of different banks.
// End:     a tile's 16 places are in 16 threads: they meet in shared memory, 8 filters at a time, and each thread
//          transforms one tile of one filter back.
//
// A stage is not loaded ahead: two blocks share a multiprocessor, and one multiplies while the other waits. In the loop
// 512 of some 740 instructions are FMAs of the sums (sm_90a).
//
// Sums are one chain over the channels, 256 at most (winograd_fused_launch.py): longer ones would err more than winograd.cu's.
//
// After A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural Networks (2016), section 5.1.
#include "common/cp_async.h"
#include "common/vector.h"
#include "conv2d/tensor.cuh"
#include "conv2d/winograd.cuh"
#include "conv2d/winograd_plan.cuh"
#include "gemm/operands.h"

namespace pyconv {

constexpr int kFusedThreads = 256;
constexpr int kPlaces = 16;      // of a transformed tile: 4 x 4
constexpr int kFusedTiles = 32;  // of a block
constexpr int kFusedFilters = 32;
constexpr int kFusedChannels = 8;  // in shared memory at a time: 34 KB, so that two blocks fit any architecture
// 8 channels (or filters) x 4 tiles of a warp then write to 32 banks.
constexpr int kTilePitch = kFusedTiles + 4;
static_assert(kFusedTiles * kFusedChannels == kFusedThreads, "a thread stages one tile of one channel");

// Which of 32 tiles and 8 channels (or filters) a thread moves: lanes run along what memory has side by side.
struct FusedItem {
  int tile, channel;
};

template <Layout kLayout>
PYCONV_DEVICE FusedItem fused_item(int thread) {
  if (kLayout == kNhwc) return {thread / kFusedChannels, thread % kFusedChannels};
  return {thread % kFusedTiles, thread / kFusedTiles};
}

// Blocks of all filters of a tile follow each other: they read the same inputs from the L2 cache.
struct FusedBlock {
  int first_out, first_tile, group;
};

PYCONV_DEVICE FusedBlock fused_block(const WinogradPlan& plan, unsigned block) {
  const unsigned filter_blocks = unsigned(ceil_div(plan.out_channels, kFusedFilters));
  const unsigned tile_blocks = unsigned(ceil_div(plan.tiles, kFusedTiles));
  return {int(block % filter_blocks) * kFusedFilters, int(block / filter_blocks % tile_blocks) * kFusedTiles,
          int(block / filter_blocks / tile_blocks)};
}

typedef float FusedTransformed[kPlaces][kFusedChannels][kTilePitch];

// The end. It works out anew where outputs go: what is not kept during the sums leaves registers to them.
template <Layout kLayout>
PYCONV_DEVICE void store_fused(const WinogradPlan& plan, const float (&sum)[8][8], FusedTransformed& products,
                               const float* bias, float* y) {
  const int thread = recomputed(threadIdx.x);
  const int place = thread / 16, own_filters = thread / 4 % 4, own_tiles = thread % 4;
  const FusedBlock block = fused_block(plan, recomputed(blockIdx.x));
  const FusedItem item = fused_item<kLayout>(thread);
  const int tile = block.first_tile + item.tile, out_channels = plan.groups * plan.out_channels;
  const WinogradTile at = winograd_tile<2>(plan, tile);
  const Tensor<float, kLayout> output(y, out_channels, plan.out_rows, plan.out_columns);

  for (int part = 0; part < kFusedFilters / 8; ++part) {  // 8 filters at a time
    __syncthreads();                                      // nobody reads what is overwritten any more
    if (own_filters == part) {
      PYCONV_UNROLL
      for (int i = 0; i < 8; ++i) {
        PYCONV_UNROLL
        for (int j = 0; j < 8; j += 4) {
          const Vector<float, 4> four = {{sum[i][j], sum[i][j + 1], sum[i][j + 2], sum[i][j + 3]}};
          store_vector(&products[place][i][own_tiles * 8 + j], four);
        }
      }
    }
    __syncthreads();

    const int out = block.first_out + part * 8 + item.channel;
    if (tile >= plan.tiles || out >= plan.out_channels) continue;
    float half[4][2];  // of A^T P, whose row i is half[.][i]
    PYCONV_UNROLL
    for (int j = 0; j < 4; ++j) {
      float points[4];
      PYCONV_UNROLL
      for (int i = 0; i < 4; ++i) points[i] = products[4 * i + j][item.channel][item.tile];
      transform_output<2>(points, half[j]);
    }
    const int channel = block.group * plan.out_channels + out;
    const float offset = bias ? bias[channel] : 0;
    PYCONV_UNROLL
    for (int i = 0; i < 2; ++i) {
      if (at.row + i >= plan.out_rows) break;
      const float row[4] = {half[0][i], half[1][i], half[2][i], half[3][i]};
      Vector<float, 2> pair;
      transform_output<2>(row, pair.element);
      pair.element[0] += offset, pair.element[1] += offset;
      float* to = &output(at.image, channel, at.row + i, at.column);
      if (kLayout == kNchw && plan.out_columns % 2 == 0) {  // then a pair is inside, and aligned
        store_vector(to, pair);
        continue;
      }
      *to = pair.element[0];
      if (at.column + 1 < plan.out_columns) to[kLayout == kNhwc ? out_channels : 1] = pair.element[1];
    }
  }
}

template <Layout kLayout>
__global__ void __launch_bounds__(kFusedThreads, 2)
    winograd_fused(WinogradPlan plan, const float* __restrict__ x, const float* __restrict__ u,
                   const float* __restrict__ bias, float* __restrict__ y) {
  // V of the staged channels; at the end P of 8 filters.
  PYCONV_SHARED(float, transformed, [kPlaces][kFusedChannels][kTilePitch]);
  PYCONV_SHARED(float, filters, [kPlaces][kFusedChannels][kFusedFilters]);

  const FusedBlock block = fused_block(plan, blockIdx.x);
  const FusedItem item = fused_item<kLayout>(threadIdx.x);
  const int tile = block.first_tile + item.tile;
  const bool is_tile = tile < plan.tiles;
  const WinogradTile at = winograd_tile<2>(plan, is_tile ? tile : 0);

  // Inputs that exist, as bits: of rows, and of columns.
  const int first_row = at.row - plan.pad_top, first_column = at.column - plan.pad_left;
  int rows = 0, columns = 0;
  PYCONV_UNROLL
  for (int i = 0; i < 4; ++i) {
    rows |= int(is_tile && unsigned(first_row + i) < unsigned(plan.in_rows)) << i;
    columns |= int(unsigned(first_column + i) < unsigned(plan.in_columns)) << i;
  }
  const int in_channels = plan.groups * plan.in_channels;
  const Tensor<const float, kLayout> input(x, in_channels, plan.in_rows, plan.in_columns);
  const float* from =
      x + input.offset(at.image, block.group * plan.in_channels + item.channel, first_row, first_column);
  const int64_t column_stride = kLayout == kNhwc ? in_channels : 1, row_stride = plan.in_columns * column_stride;
  const int64_t channel_stride = kLayout == kNhwc ? 1 : int64_t(plan.in_rows) * plan.in_columns;

  // Of U a thread copies 4 filters of one channel, for every fourth place.
  const int copy_out = threadIdx.x % 8 * 4, copy_channel = threadIdx.x / 8 % 8, copy_place = threadIdx.x / 64;
  const int outs = plan.out_channels - block.first_out - copy_out;
  const int copy_bytes = 4 * (outs < 0 ? 0 : outs < 4 ? outs : 4);
  const int64_t place_stride = int64_t(plan.in_channels) * plan.u_pitch;
  const float* u_from = u + winograd_line(block.group, kPlaces, plan.in_channels, copy_channel, plan.u_pitch) +
                        copy_place * place_stride + block.first_out + copy_out;

  const int place = threadIdx.x / 16, own_filters = threadIdx.x / 4 % 4, own_tiles = threadIdx.x % 4;
  float sum[8][8] = {};
  for (int c0 = 0; c0 < plan.in_channels; c0 += kFusedChannels) {
    float inputs[4][4];
    const bool is_channel = c0 + item.channel < plan.in_channels;
    PYCONV_UNROLL
    for (int i = 0; i < 4; ++i) {
      const float* row = from + i * row_stride;
      PYCONV_UNROLL
      for (int j = 0; j < 4; ++j, row += column_stride)
        inputs[j][i] = is_channel && (rows >> i & 1) && (columns >> j & 1) ? *row : 0;
    }
    from += kFusedChannels * channel_stride;

    __syncthreads();  // nobody multiplies the channels before any more
    PYCONV_UNROLL
    for (int i = 0; i < 4; ++i)
      cp_async<16>(&filters[copy_place + 4 * i][copy_channel][copy_out], u_from + 4 * i * place_stride,
                   c0 + copy_channel < plan.in_channels ? copy_bytes : 0);
    u_from += int64_t(kFusedChannels) * plan.u_pitch;
    cp_async_commit();
    float half[4][4];  // of B^T d, whose row i is half[.][i]
    PYCONV_UNROLL
    for (int j = 0; j < 4; ++j) transform_input<2>(inputs[j], half[j]);
    PYCONV_UNROLL
    for (int i = 0; i < 4; ++i) {
      const float row[4] = {half[0][i], half[1][i], half[2][i], half[3][i]};
      float points[4];
      transform_input<2>(row, points);
      PYCONV_UNROLL
      for (int j = 0; j < 4; ++j) transformed[4 * i + j][item.channel][item.tile] = points[j];
    }
    cp_async_wait<0>();
    __syncthreads();

    PYCONV_UNROLL
    for (int c = 0; c < kFusedChannels; ++c) {
      Vector<float, 4> a[2], b[2];
      PYCONV_UNROLL
      for (int part = 0; part < 2; ++part) {
        a[part] = load_vector<4>(&filters[place][c][own_filters * 8 + part * 4]);
        b[part] = load_vector<4>(&transformed[place][c][own_tiles * 8 + part * 4]);
      }
      PYCONV_UNROLL
      for (int i = 0; i < 8; ++i) {
        PYCONV_UNROLL
        for (int j = 0; j < 8; ++j) sum[i][j] = fused(a[i / 4].element[i % 4], b[j / 4].element[j % 4], sum[i][j]);
      }
    }
  }

  store_fused<kLayout>(plan, sum, transformed, bias, y);
}

}  // namespace pyconv
