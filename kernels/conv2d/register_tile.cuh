// The register tile that the tiled kernels have in common: TM x TN sums of a thread, and the outer product of a
// column and a row of staged elements that is added to it for every term of the sum.
#pragma once
#include "common/numbers.h"
#include "common/vector.h"

namespace pyconv {

// N neighbouring elements, 16 bytes at a time. Where all lanes of a warp read the same ones, that is one access to
// shared memory each.
template <int N, class Sum>
PYCONV_DEVICE void load_run(Sum (&own)[N], const Sum* from) {
  constexpr int V = kVector16<Sum>;
  static_assert(N % V == 0, "a run is read in whole vectors");
  PYCONV_UNROLL
  for (int i = 0; i < N; i += V) {
    const Vector<Sum, V> part = load_vector<V>(from + i);
    PYCONV_UNROLL
    for (int v = 0; v < V; ++v) own[i + v] = part.element[v];
  }
}

// sums[i][j] += column[i] * row[j]
template <int TM, int TN, class Sum>
PYCONV_DEVICE void add_outer_product(Sum (&sums)[TM][TN], const Sum* column, const Sum (&row)[TN]) {
  PYCONV_UNROLL
  for (int i = 0; i < TM; ++i) {
    PYCONV_UNROLL
    for (int j = 0; j < TN; ++j) sums[i][j] = fused(column[i], row[j], sums[i][j]);
  }
}

}  // namespace pyconv
