// Kernels with nothing wrong in them, each with something that a careless checker would complain of.
#include "common/cp_async.h"
#include "common/numbers.h"
#include "common/vector.h"
#include "common/warp.h"

namespace pyconv {

// y = transpose of x[n][n], through a padded tile; the last tiles are ragged. grid (n/T, n/T), block (T, T).
template <int T>
__global__ void transpose(const float* x, float* y, int n) {
  PYCONV_SHARED(float, tile, [T][T + 1]);
  const int column = blockIdx.x * T + threadIdx.x, row = blockIdx.y * T + threadIdx.y;
  if (row < n && column < n) tile[threadIdx.y][threadIdx.x] = x[row * n + column];
  __syncthreads();
  const int y_column = blockIdx.y * T + threadIdx.x, y_row = blockIdx.x * T + threadIdx.y;
  if (y_row < n && y_column < n) y[y_row * n + y_column] = tile[threadIdx.x][threadIdx.y];
}

// y[block] = sum of a row of x: shuffles within warps, shared memory and one barrier between them.
template <int kThreads>
__global__ void row_sum(const float* x, float* y, int n) {
  PYCONV_SHARED(float, partial, [kThreads / kWarpSize]);
  float sum = 0;
  for (int i = threadIdx.x; i < n; i += kThreads) sum += x[blockIdx.x * n + i];
  sum = warp_sum(sum);
  if (threadIdx.x % kWarpSize == 0) partial[threadIdx.x / kWarpSize] = sum;
  __syncthreads();
  if (threadIdx.x >= kWarpSize) return;
  sum = threadIdx.x < kThreads / kWarpSize ? partial[threadIdx.x] : 0;
  for (int step = kWarpSize / 2; step; step /= 2) sum += __shfl_down_sync(0xffffffffu, sum, step);
  if (threadIdx.x == 0) y[blockIdx.x] = sum;
}

// y[i] = sum over tiles of x[tile][255 - i]: a pipeline of kStages tiles in dynamic shared memory. One barrier a tile
// is enough: a tile is overwritten only after everyone has passed the barrier that follows its last use.
template <int kStages>
__global__ void pipeline(const float* x, float* y, int n) {
  constexpr int kTile = 256;
  PYCONV_DYNAMIC_SHARED(float, stages);  // [kStages][kTile]
  const int t = threadIdx.x, tiles = (n + kTile - 1) / kTile;
  float sum = 0;
  const auto load = [&](int tile) {
    if (tile < tiles) {
      const int i = tile * kTile + 4 * t, left = (n - i) * 4;
      const int valid = left < 0 ? 0 : left < 16 ? left : 16;
      cp_async<16>(stages + tile % kStages * kTile + 4 * t, valid ? x + i : x, valid);
    }
    cp_async_commit();
  };
  for (int tile = 0; tile < kStages - 1; ++tile) load(tile);
  for (int tile = 0; tile < tiles; ++tile) {
    cp_async_wait<kStages - 2>();
    __syncthreads();
    load(tile + kStages - 1);
    sum += stages[tile % kStages * kTile + 255 - t];
  }
  y[t] = sum;
}

// Each warp reverses its 32 elements in shared memory, with no block barrier: warp barriers order it.
__global__ void warps_on_their_own(const float* x, float* y) {
  PYCONV_SHARED(float, tile, [4][kWarpSize]);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  for (int round = 0; round < 3; ++round) {
    tile[warp][lane] = round ? tile[warp][lane] + 1 : x[threadIdx.x];
    __syncwarp();
    const float other = tile[warp][31 - lane];
    __syncwarp();
    tile[warp][lane] = other;
  }
  // Pairs of lanes meet; then all, by a ballot.
  __syncwarp(3u << (lane & ~1));
  const float neighbour = tile[warp][lane ^ 1];
  const bool all = __ballot_sync(kWholeWarp, true) == kWholeWarp;
  y[threadIdx.x] = all ? neighbour + tile[warp][(lane + 7) % 32] : 0;
}

// Neighbouring bytes, halves and vectors written by different threads of different blocks do not race.
__global__ void neighbours(const uint8_t* x, uint8_t* bytes, uint16_t* halves, float* vectors) {
  PYCONV_SHARED(uint8_t, tile, [64]);
  const int i = blockIdx.x * 64 + threadIdx.x;
  tile[threadIdx.x] = x[i];
  __syncthreads();
  bytes[i] = tile[63 - threadIdx.x];
  halves[i] = uint16_t(bytes[i] * 2);
  store_vector(vectors + 4 * i, Vector<float, 4>{{1, 2, 3, float(halves[i])}});
  vectors[4 * i + 2] += load_vector<2>(vectors + 4 * i).element[1];
}

// A histogram: integer atomics in shared memory, then in global memory, of all blocks.
__global__ void histogram(const int* x, int* counts, int n) {
  PYCONV_SHARED(int, local, [16]);
  if (threadIdx.x < 16) local[threadIdx.x] = 0;
  __syncthreads();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) atomicAdd(&local[x[i]], 1);
  __syncthreads();
  if (threadIdx.x < 16) atomicAdd(&counts[threadIdx.x], local[threadIdx.x]);
}

// Two steps of one program: partial sums of blocks in the workspace, then their sum. One thread a block.
__global__ void partial_sums(const double* x, double* workspace, int n) {
  double sum = 0;
  for (int i = blockIdx.x; i < n; i += gridDim.x) sum += x[i];
  workspace[blockIdx.x] = sum;
}
__global__ void sum_of_sums(const double* workspace, double* y, int count) {
  double sum = 0;
  for (int i = 0; i < count; ++i) sum += workspace[i];
  y[0] = sum;
}

struct Affine {
  int64_t scale;
  int32_t offset;
};
// A struct by value, a null pointer, constants of the code, local arrays with dynamic indices; a block of 48 threads.
__global__ void parameters(Affine affine, const int* x, const int* bias, int* y) {
  static const int kTable[4] = {3, 1, 4, 1};
  int local[4];
  for (int i = 0; i < 4; ++i) local[(i + threadIdx.x) % 4] = kTable[i];
  const int i = blockIdx.x * 48 + threadIdx.x;
  const int value = int(x[i] * affine.scale) + affine.offset + local[x[i] & 3] + (bias ? bias[i] : 0);
  y[i] = __shfl_xor_sync(kWholeWarp, value, 1);
}

}  // namespace pyconv
