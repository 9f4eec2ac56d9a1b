// Bias gradient: db[k] = sum over n,p,q of dy[n,k,p,q]. Every element is read once and added once, so memory is
// the limit: 16-byte loads, and enough blocks to keep it busy.
//
// Two steps, because one block per filter would be too few and adding atomically has no fixed order:
//   bgrad_nchw, bgrad_nhwc   each block adds up a chunk of n,p,q               -> partial[k][chunk] (workspace)
//   bgrad_total              each warp adds up the partial sums of one filter  -> db[k]
// The chunks, and so the order of every sum, come from the problem.
//
// nchw   Block: one filter, kChunk elements of its n planes.    Warp: neighbouring elements, V for each lane.
// nhwc   Block: lanes*V filters, chunk_rows rows of n,p,q.      Warp: 32/lanes rows, V filters for each lane.
#include "common/numbers.h"
#include "common/vector.h"
#include "common/warp.h"

namespace pyconv {

// Adds V elements to V sums.
template <int V, class T, class Sum>
PYCONV_DEVICE void add(Sum (&sums)[V], const Vector<T, V>& elements) {
  PYCONV_UNROLL
  for (int v = 0; v < V; ++v) sums[v] += widen(elements.element[v]);
}

template <class T, int V, int kChunk, int kThreads>
__global__ void __launch_bounds__(kThreads)
    bgrad_nchw(Conv2dProblem problem, int32_t chunks, const T* __restrict__ dy,
               Accumulator<T>* __restrict__ partial) {
  using Sum = Accumulator<T>;
  constexpr int kWarps = kThreads / kWarpSize;
  static_assert(kChunk % (kThreads * V) == 0, "all threads of a whole chunk have the same number of elements");
  const int64_t k = blockIdx.x / unsigned(chunks), chunk = blockIdx.x % unsigned(chunks);
  const int64_t plane = problem.p() * problem.q(), begin = chunk * kChunk, left = problem.n * plane - begin;
  const int count = left < kChunk ? int(left) : kChunk;
  const int64_t first_image = begin / plane;
  const T* const first = dy + (first_image * problem.k + k) * plane;
  const uint32_t first_place = uint32_t(begin % plane);  // in its plane, which may end within the chunk

  Sum sums[V] = {};
  for (int i = int(threadIdx.x) * V; i < count; i += kThreads * V) {
    const uint32_t place = first_place + uint32_t(i), image = place / uint32_t(plane);
    add(sums, load_vector<V>(first + image * problem.k * plane + place % uint32_t(plane)));
  }
  Sum sum = 0;
  PYCONV_UNROLL
  for (int v = 0; v < V; ++v) sum += sums[v];

  PYCONV_SHARED(Sum, of_warps, [kWarps]);
  sum = warp_sum(sum);
  if (threadIdx.x % kWarpSize == 0) of_warps[threadIdx.x / kWarpSize] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < kWarps; ++warp) sum += of_warps[warp];
    partial[k * chunks + chunk] = sum;
  }
}

template <class T, int V, int kThreads>
__global__ void __launch_bounds__(kThreads)
    bgrad_nhwc(Conv2dProblem problem, int32_t chunks, int32_t chunk_rows, int32_t lanes, const T* __restrict__ dy,
               Accumulator<T>* __restrict__ partial) {
  using Sum = Accumulator<T>;
  constexpr int kWarps = kThreads / kWarpSize;
  const int lane = int(threadIdx.x) % lanes;
  const int64_t chunk = blockIdx.x % unsigned(chunks);
  const int64_t k =
      (int64_t(blockIdx.x / unsigned(chunks)) * lanes + lane) * V;  // the first of this lane's filters
  const int64_t rows = problem.n * problem.p() * problem.q(), begin = chunk * chunk_rows;
  const int64_t end = begin + chunk_rows < rows ? begin + chunk_rows : rows;

  Sum sums[V] = {};
  if (k < problem.k) {
    for (int64_t row = begin + int(threadIdx.x) / lanes; row < end; row += kThreads / lanes)
      add(sums, load_vector<V>(dy + row * problem.k + k));
  }
  // Lanes with the same filters are `lanes` apart, within a warp and then from warp to warp.
  PYCONV_SHARED(Sum, of_warps, [kWarps][kWarpSize][V]);
  PYCONV_UNROLL
  for (int v = 0; v < V; ++v) {
    for (int distance = kWarpSize / 2; distance >= lanes; distance /= 2)
      sums[v] += __shfl_xor_sync(kWholeWarp, sums[v], distance);
    of_warps[threadIdx.x / kWarpSize][threadIdx.x % kWarpSize][v] = sums[v];
  }
  __syncthreads();
  if (int(threadIdx.x) < lanes && k < problem.k) {
    for (int v = 0; v < V; ++v) {
      for (int warp = 1; warp < kWarps; ++warp) sums[v] += of_warps[warp][lane][v];
      partial[(k + v) * chunks + chunk] = sums[v];
    }
  }
}

template <class T, int kThreads>
__global__ void __launch_bounds__(kThreads)
    bgrad_total(Conv2dProblem problem, int32_t chunks, const Accumulator<T>* __restrict__ partial,
                T* __restrict__ db) {
  constexpr int kWarps = kThreads / kWarpSize;
  const int64_t k = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
  const int lane = int(threadIdx.x) % kWarpSize;
  Accumulator<T> sum = 0;
  if (k < problem.k) {
    for (int chunk = lane; chunk < chunks; chunk += kWarpSize) sum += partial[k * chunks + chunk];
  }
  sum = warp_sum(sum);  // all lanes take part, those beyond the last filter too
  if (lane == 0 && k < problem.k) db[k] = narrow<T>(sum);
}

}  // namespace pyconv
