// Weight gradient of the direct convolution, tiled. dw is a matrix of filters k x entries (c,r,s), and its sum
// runs over all pixels:
//
//   dw[k,c,r,s] = sum over n,p,q of dy[n,k,p,q] * x[n,c,h,w]      h = p*stride_h - pad_top + r*dilation_h, w alike
//
// The matrix is small and the sum is long, so the pixels are split among blocks. A split is a run of tiles of
// pixels, which the problem decides; its partial sums go to a copy of dw of its own in the workspace, and a second
// kernel (wgrad_sum.cu) adds the copies in order.
//
// Block:   plan.filters x plan.entries of dw in one group, over the tiles of one split. For each tile it stages
//          dy, and a patch of x in which every entry (c,r,s) finds its pixel at a fixed distance.
// Thread:  TM filters  x  TN entries. The lanes of a warp have the same filters and neighbouring entries.
//
// For each pixel, a warp reads TM words of dy that all lanes share and TN times 32 words of the patch: in float
// 4 + 4 accesses to shared memory for 64 FMAs. The pitch between channels is chosen such that 32 neighbouring
// entries lie in different banks as far as can be (patch.py).
//
//   shared memory   dy        [image][row][column][filter]
//                   patch     [channel][image][row][column]       (patch.cuh)
//                   sources   [image][row][column]                where that place lies in x
#include "conv2d/direct_tiled_wgrad_tile.cuh"
#include "conv2d/register_tile.cuh"

namespace pyconv {

// ---- Load ----------------------------------------------------------------------------------------------------

// Eight neighbouring lanes take neighbouring filters, V at a time, the four rows of a warp neighbouring pixels.
// With a pitch of 8 more than a multiple of 16 words they write to different banks.
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

// Adds the products of one tile. `dy` is where this thread's filters begin, `places[j]` where its entry j finds
// the first pixel.
template <int TM, int TN, class Sum>
PYCONV_DEVICE void multiply(Sum (&sums)[TM][TN], const WgradPlan& plan, const WgradTile& tile, const Sum* dy,
                            const Sum* patch, const int (&places)[TN]) {
  for (int image = 0; image < tile.images; ++image) {
    for (int row = 0; row < tile.rows; ++row) {
      const Sum* filters = dy + (image * plan.rows.tile + row) * plan.columns.tile * plan.dy_pitch;
      const Sum* pixel = patch + image * plan.patch.image_pitch + row * plan.rows.in_step * plan.patch.row_pitch;
      for (int column = 0; column < tile.columns; ++column) {
        Sum own_dy[TM], own_x[TN];
        load_run(own_dy, filters);
        PYCONV_UNROLL
        for (int j = 0; j < TN; ++j) own_x[j] = pixel[places[j]];
        add_outer_product(sums, own_dy, own_x);
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
  const Tensor<const T, kLayout> x(x_data, problem.c, problem.h, problem.w);
  const Tensor<const T, kLayout> dy(dy_data, problem.k, plan.rows.outputs, plan.columns.outputs);
  PYCONV_SHARED(WgradBlock, block);
  PYCONV_DYNAMIC_SHARED(Sum, staged_dy);
  Sum* patch = staged_dy + plan.dy_size;
  int* sources = reinterpret_cast<int*>(patch + plan.patch_size);

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
      const PatchOrigin origin = {at.image, block.group * plan.group_c + block.channel,
                                  at.row * int(problem.stride_h) - int(problem.pad_top),
                                  at.column * int(problem.stride_w) - int(problem.pad_left)};
      find_sources<kThreads>(sources, plan.patch, origin, x, int(problem.n));
      const int first_filter = block.group * plan.group_k + block.filter;
      const int filters = plan.group_k - block.filter;
      if (kLayout == kNhwc && plan.group_k % V == 0)
        stage_dy<kThreads, V>(staged_dy, plan, at, dy, first_filter, filters);
      else
        stage_dy<kThreads, 1>(staged_dy, plan, at, dy, first_filter, filters);
      __syncthreads();
      const bool is_aligned =
          plan.group_c % kXVector == 0 && block.channel % kXVector == 0 && block.channels % kXVector == 0;
      stage_patch<kThreads, kXVector>(patch, plan.patch, origin, sources, x, 0, block.channels, is_aligned);
      __syncthreads();
      multiply(sums, plan, at, own_dy, patch, places);
    }
    store<kThreads>(partial, sums, problem, plan, block, is_first);
  } while (tile < block.end_tile);
}

}  // namespace pyconv
