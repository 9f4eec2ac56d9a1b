// cp.async on its own: what arrives, what is filled with zeros, and when.
#include "common/cp_async.h"
#include "common/vector.h"

namespace pyconv {

// y[0 .. THREADS * BYTES) = x up to element `valid`, then zeros. Each thread copies one piece.
template <int BYTES, int THREADS>
__global__ void __launch_bounds__(THREADS) cp_async_ragged(const uint8_t* x, uint8_t* y, int valid) {
  typedef Vector<uint8_t, BYTES> Piece;  // aligned as cp.async wants it
  PYCONV_SHARED(Piece, pieces, [THREADS]);
  const int thread = int(threadIdx.x), first = thread * BYTES;
  const int rest = valid - first, valid_bytes = rest < 0 ? 0 : rest < BYTES ? rest : BYTES;
  cp_async<BYTES>(&pieces[thread], valid_bytes > 0 ? &x[first] : x, valid_bytes);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  const int other = THREADS - 1 - thread;  // another thread's piece: it is there after the barrier
  for (int i = 0; i < BYTES; ++i) y[other * BYTES + i] = pieces[other].element[i];
}

// y[i] = x[i] through a ring of three stages, as the pipelines of the GEMM have it: two tiles always under way.
template <int THREADS>
__global__ void __launch_bounds__(THREADS) cp_async_ring(const float* x, float* y, int tiles) {
  constexpr int kStages = 3;
  PYCONV_SHARED(float, ring, [kStages][THREADS]);
  const int thread = int(threadIdx.x);
  for (int tile = 0; tile < kStages - 1; ++tile) {
    if (tile < tiles) cp_async<4>(&ring[tile][thread], &x[tile * THREADS + thread]);
    cp_async_commit();  // also where nothing was copied: then the count of groups stays that of tiles
  }
  for (int tile = 0; tile < tiles; ++tile) {
    cp_async_wait<kStages - 2>();
    __syncthreads();
    const int ahead = tile + kStages - 1;
    if (ahead < tiles) cp_async<4>(&ring[ahead % kStages][thread], &x[ahead * THREADS + thread]);
    cp_async_commit();
    y[tile * THREADS + thread] = ring[tile % kStages][THREADS - 1 - thread];
  }
}

}  // namespace pyconv
