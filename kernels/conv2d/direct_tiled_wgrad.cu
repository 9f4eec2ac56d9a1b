// Weight gradient of the direct convolution, tiled. dw is a matrix of filters k x entries (c,r,s), and its sum runs
// over all pixels:
//
//   dw[k,c,r,s] = sum over n,p,q of dy[n,k,p,q] * x[n,c,h,w]      h = p*stride_h - pad_top + r*dilation_h, w alike
//
// The matrix is small and the sum is long, so the pixels are split among blocks. A split is a run of tiles of pixels,
// which the problem decides; its partial sums go to a copy of dw of its own in the workspace, and a second kernel adds
// the copies in order.
//
// Block:   plan.filters x plan.entries of dw in one group, over the tiles of one split. For each tile it stages dy,
//          and a patch of x in which every entry (c,r,s) finds its pixel at a fixed distance.
// Thread:  TM filters  x  TN entries. The lanes of a warp have the same filters and neighbouring entries.
//
// For each pixel, a warp reads TM words of dy that all lanes share and TN times 32 words of the patch: in float 4 + 4
// accesses to shared memory for 64 FMAs. The pitch between channels is chosen such that 32 neighbouring entries lie in
// different banks as far as can be (direct_tiled_wgrad_launch.py).
//
//   shared memory   dy        [image][row][column][filter]
//                   patch     [channel][image][row][column]       (patch.cuh)
//                   sources   [image][row][column]                where that place lies in x
#include "conv2d/patch.cuh"

namespace pyconv {

// Decided by direct_tiled_wgrad_launch.py; same fields, same order.
struct WgradAxis {
  int32_t outputs;            // P or Q
  int32_t in_step, tap_step;  // places of the patch between neighbouring outputs, and between neighbouring taps
  int32_t tile, tiles;        // outputs of a tile, and tiles that cover them
};
struct WgradPlan {
  WgradAxis rows, columns;
  Patch patch;
  int32_t group_c, group_k, group_entries;  // of a group; entries are c*r*s
  int32_t image_tiles;                      // that cover n; patch.images are one
  int32_t filters, filter_blocks;           // of a block, and blocks that cover a group
  int32_t entries, entry_blocks;            // the same along c,r,s
  int32_t channels;                         // of the patch
  int32_t splits, split_tiles;              // and tiles of pixels of each
  int32_t chain_tiles;                      // tiles whose products are added in one chain
  int32_t dy_pitch;                         // between pixels, in elements
  int32_t dy_size, patch_size;              // in elements
};

// What one block computes. It lies in shared memory: the registers are for sums.
struct WgradBlock {
  int group, filter, entry;  // the first of each; filters and entries count within the group
  int channel, channels;     // of the patch, within the group
  int tile, end_tile;
  int split;
};

PYCONV_DEVICE WgradBlock wgrad_block(const Conv2dProblem& a, const WgradPlan& plan) {
  unsigned rest = blockIdx.x;
  auto next = [&](int count) {
    const int index = int(rest % unsigned(count));
    rest /= unsigned(count);
    return index;
  };
  WgradBlock block;
  block.filter = next(plan.filter_blocks) * plan.filters;  // first: neighbours read the same pixels
  block.entry = next(plan.entry_blocks) * plan.entries;
  block.group = next(int(a.groups));
  block.split = int(rest);
  const int taps = int(a.r * a.s), tiles = plan.image_tiles * plan.rows.tiles * plan.columns.tiles;
  block.channel = block.entry / taps;
  const int channels = plan.group_c - block.channel;
  block.channels = channels < plan.channels ? channels : plan.channels;
  block.tile = block.split * plan.split_tiles;
  block.end_tile = block.tile + plan.split_tiles < tiles ? block.tile + plan.split_tiles : tiles;
  return block;
}

// A tile of pixels: where it begins, and how much of it lies inside y.
struct WgradTile {
  int image, row, column;
  int images, rows, columns;
};

PYCONV_DEVICE WgradTile wgrad_tile(const Conv2dProblem& a, const WgradPlan& plan, int tile) {
  WgradTile at;
  at.column = tile % plan.columns.tiles * plan.columns.tile;
  at.row = tile / plan.columns.tiles % plan.rows.tiles * plan.rows.tile;
  at.image = tile / plan.columns.tiles / plan.rows.tiles * plan.patch.images;
  const int images = int(a.n) - at.image, rows = plan.rows.outputs - at.row;
  const int columns = plan.columns.outputs - at.column;
  at.images = images < plan.patch.images ? images : plan.patch.images;
  at.rows = rows < plan.rows.tile ? rows : plan.rows.tile;
  at.columns = columns < plan.columns.tile ? columns : plan.columns.tile;
  return at;
}

// ---- Load ----------------------------------------------------------------------------------------------------

// Eight neighbouring lanes take neighbouring filters, V at a time, the four rows of a warp neighbouring pixels. With a
// pitch of 8 more than a multiple of 16 words they write to different banks.
template <int kThreads, int V, Layout kLayout, class T, class Sum>
PYCONV_DEVICE void stage_dy(Sum* to, const WgradPlan& plan, const WgradTile& tile,
                            const Tensor<const T, kLayout>& dy, int first_filter, int filters) {
  constexpr int kLanes = 8;
  const int64_t k_stride = dy.offset(0, 1, 0, 0);
  for (int pixel = int(threadIdx.x) / kLanes; pixel < tile.images * plan.rows.tile * plan.columns.tile;
       pixel += kThreads / kLanes) {
    const int column = pixel % plan.columns.tile, row = pixel / plan.columns.tile % plan.rows.tile;
    const int image = pixel / plan.columns.tile / plan.rows.tile;
    if (column >= tile.columns || row >= tile.rows) continue;  // nobody reads it
    const T* from = &dy(tile.image + image, first_filter, tile.row + row, tile.column + column);
    for (int k = int(threadIdx.x) % kLanes * V; k < plan.filters; k += kLanes * V) {
      Vector<T, V> run = {};
      if (k < filters) run = load_vector<V>(from + k * k_stride);
      PYCONV_UNROLL
      for (int v = 0; v < V; ++v) to[pixel * plan.dy_pitch + k + v] = widen(run.element[v]);
    }
  }
}

// ---- Compute -------------------------------------------------------------------------------------------------

// Adds the products of one tile. `dy` is where this thread's filters begin, `places[j]` where its entry j finds the
// first pixel.
template <int TM, int TN, class Sum>
PYCONV_DEVICE void multiply(Sum (&sums)[TM][TN], const WgradPlan& plan, const WgradTile& tile, const Sum* dy,
                            const Sum* patch, const int (&places)[TN]) {
  constexpr int V = kVector16<Sum>;
  for (int image = 0; image < tile.images; ++image) {
    for (int row = 0; row < tile.rows; ++row) {
      const Sum* filters = dy + (image * plan.rows.tile + row) * plan.columns.tile * plan.dy_pitch;
      const Sum* pixel = patch + image * plan.patch.image_pitch + row * plan.rows.in_step * plan.patch.row_pitch;
      for (int column = 0; column < tile.columns; ++column) {
        Sum own_dy[TM], own_x[TN];
        PYCONV_UNROLL
        for (int i = 0; i < TM; i += V) {
          const Vector<Sum, V> part = load_vector<V>(filters + i);
          PYCONV_UNROLL
          for (int v = 0; v < V; ++v) own_dy[i + v] = part.element[v];
        }
        PYCONV_UNROLL
        for (int j = 0; j < TN; ++j) own_x[j] = pixel[places[j]];
        PYCONV_UNROLL
        for (int i = 0; i < TM; ++i) {
          PYCONV_UNROLL
          for (int j = 0; j < TN; ++j) sums[i][j] = fused(own_dy[i], own_x[j], sums[i][j]);
        }
        filters += plan.dy_pitch;
        pixel += 1;  // neighbouring outputs read neighbouring words, whatever the stride
      }
    }
  }
}

// ---- Store ---------------------------------------------------------------------------------------------------

// partial = sums, or partial += sums where those of the chains before are there already.
template <int kThreads, int TM, int TN, class Sum>
PYCONV_DEVICE void store(Sum* partial, const Sum (&sums)[TM][TN], const Conv2dProblem& a, const WgradPlan& plan,
                         const WgradBlock& block, bool is_first) {
  const int lanes = kThreads / (plan.filters / TM);
  const int lane = int(threadIdx.x) % lanes, filter = block.filter + int(threadIdx.x) / lanes * TM;
  const int filters = plan.group_k - filter;
  PYCONV_UNROLL
  for (int j = 0; j < TN; ++j) {
    const int entry = block.entry + lane + j * lanes;
    if (lane + j * lanes >= plan.entries || entry >= plan.group_entries) break;
    Sum* at =
        partial + ((block.split * a.groups + block.group) * plan.group_k + filter) * plan.group_entries + entry;
    PYCONV_UNROLL
    for (int i = 0; i < TM; ++i) {
      if (i >= filters) break;
      *at = is_first ? sums[i][j] : *at + sums[i][j];
      at += plan.group_entries;
    }
  }
}

template <class T, Layout kLayout, int TM, int TN, int kThreads>
__global__ void __launch_bounds__(kThreads, 2)  // 2 blocks of 256 threads have 128 registers a thread: 64 are sums
    direct_tiled_wgrad(Conv2dProblem problem, WgradPlan plan, const T* __restrict__ x_data,
                       const T* __restrict__ dy_data, Accumulator<T>* partial) {
  using Sum = Accumulator<T>;
  constexpr int V = kVector16<T>;
  constexpr int kXVector = V < 4 ? V : 4;  // a block's channels, 28 for 3x3 taps, are rarely a multiple of 8
  static_assert(TM % V == 0 && TM % kVector16<Sum> == 0, "filters are read in whole vectors");
  const Tensor<const T, kLayout> x(x_data, problem.c, problem.h, problem.w);
  const Tensor<const T, kLayout> dy(dy_data, problem.k, plan.rows.outputs, plan.columns.outputs);
  PYCONV_SHARED(WgradBlock, block);
  PYCONV_DYNAMIC_SHARED(Sum, staged_dy);
  Sum* patch = staged_dy + plan.dy_size;
  int64_t* sources = reinterpret_cast<int64_t*>(patch + plan.patch_size);

  if (threadIdx.x == 0) block = wgrad_block(problem, plan);
  __syncthreads();
  const int lanes = kThreads / (plan.filters / TM);
  const Sum* own_dy = staged_dy + int(threadIdx.x) / lanes * TM;
  int places[TN];
  PYCONV_UNROLL
  for (int j = 0; j < TN; ++j) {
    const int taps = int(problem.r * problem.s);
    const int entry = block.entry + int(threadIdx.x) % lanes + j * lanes;
    const int channel = entry / taps - block.channel, r = entry % taps / int(problem.s),
              s = entry % int(problem.s);
    const int place = channel * plan.patch.channel_pitch + r * plan.rows.tap_step * plan.patch.row_pitch +
                      plan.patch.column(s * plan.columns.tap_step);
    places[j] = channel < block.channels ? place : 0;  // beyond the last entry: any place will do
  }

  int tile = block.tile;
  do {
    const bool is_first = tile == block.tile;
    const int end = block.end_tile - tile < plan.chain_tiles ? block.end_tile : tile + plan.chain_tiles;
    Sum sums[TM][TN] = {};
    for (; tile < end; ++tile) {
      const WgradTile at = wgrad_tile(problem, plan, tile);
      __syncthreads();  // nobody needs the tile before any more
      find_sources<kThreads>(sources, plan.patch, x, int(problem.n), at.image,
                             block.group * plan.group_c + block.channel,
                             at.row * int(problem.stride_h) - int(problem.pad_top),
                             at.column * int(problem.stride_w) - int(problem.pad_left));
      const int first_filter = block.group * plan.group_k + block.filter;
      const int filters = plan.group_k - block.filter;
      if (kLayout == kNhwc && plan.group_k % V == 0)
        stage_dy<kThreads, V>(staged_dy, plan, at, dy, first_filter, filters);
      else
        stage_dy<kThreads, 1>(staged_dy, plan, at, dy, first_filter, filters);
      __syncthreads();
      const bool is_aligned =
          plan.group_c % kXVector == 0 && block.channel % kXVector == 0 && block.channels % kXVector == 0;
      stage_patch<kThreads, kXVector>(patch, plan.patch, sources, x, 0, block.channels, is_aligned);
      __syncthreads();
      multiply(sums, plan, at, own_dy, patch, places);
    }
    store<kThreads>(partial, sums, problem, plan, block, is_first);
  } while (tile < block.end_tile);
}

// dw[k,c,r,s] = sum over splits of partial[split][k][c][r][s]. Each column of threads adds every kRows-th split, and
// then the kRows sums in order.
template <class T, Layout kLayout, int kRows>
__global__ void __launch_bounds__(kWarpSize* kRows)
    wgrad_sum_splits(Conv2dProblem problem, int32_t splits, const Accumulator<T>* __restrict__ partial,
                     T* __restrict__ dw_data) {
  using Sum = Accumulator<T>;
  PYCONV_SHARED(Sum, sums, [kRows][kWarpSize]);
  const int64_t size = problem.w_size(), element = int64_t(blockIdx.x) * kWarpSize + threadIdx.x % kWarpSize;
  const int row = int(threadIdx.x) / kWarpSize;
  Sum sum = 0;
  if (element < size) {
    for (int split = row; split < splits; split += kRows) sum += partial[split * size + element];
  }
  sums[row][threadIdx.x % kWarpSize] = sum;
  __syncthreads();
  if (row == 0 && element < size) {
    for (int other = 1; other < kRows; ++other) sum += sums[other][threadIdx.x];
    const Tensor<T, kNchw> order(dw_data, problem.group_c(), problem.r, problem.s);  // that of the workspace
    const Tensor<T, kLayout> dw(dw_data, problem.group_c(), problem.r, problem.s);
    const Place at = order.place(element);
    dw(at.outer, at.channel, at.row, at.column) = narrow<T>(sum);
  }
}

}  // namespace pyconv
