// The transforms of winograd.h along one axis, for one thread; with both axes they are applied to columns, then rows.
//
// The points come as p and -p, so what two rows of a matrix share is computed once: even part + odd part and even part
// - odd part. In instructions, for a whole tile: 32 (M = 2) or 192 (M = 4) of the input, 24 or 130 of the output.
#pragma once
#include "common/numbers.h"
#include "conv2d/winograd.h"

namespace pyconv {

// Sum over every second j, from `first` on, of row[j] * values[j]. `row` is known when compiled: what is 0 costs nothing,
// and a product with 1 no multiplication.
template <int COUNT>
PYCONV_DEVICE float every_second(const double (&row)[COUNT], const float (&values)[COUNT], int first) {
  float sum = 0;
  bool is_first = true;
  PYCONV_UNROLL
  for (int j = first; j < COUNT; j += 2) {
    if (row[j] == 0) continue;
    sum = is_first ? float(row[j]) * values[j] : fused(float(row[j]), values[j], sum);
    is_first = false;
  }
  return sum;
}

// B^T or G: from COUNT values to M+2.
template <int SIDE, int COUNT>
PYCONV_DEVICE void to_points(const double (&matrix)[SIDE][COUNT], const float (&values)[COUNT],
                             float (&at_points)[SIDE]) {
  at_points[0] = every_second(matrix[0], values, 0);
  PYCONV_UNROLL
  for (int i = 1; i + 1 < SIDE; i += 2) {
    const float even = every_second(matrix[i], values, 0), odd = every_second(matrix[i], values, 1);
    at_points[i] = even + odd;
    at_points[i + 1] = even - odd;
  }
  at_points[SIDE - 1] = every_second(matrix[SIDE - 1], values, (COUNT - 1) % 2);
}

template <int M>
PYCONV_DEVICE void transform_input(const float (&inputs)[M + 2], float (&at_points)[M + 2]) {
  constexpr Winograd<M> matrices = {};
  to_points(matrices.input, inputs, at_points);
}

template <int M>
PYCONV_DEVICE void transform_filter(const float (&taps)[3], float (&at_points)[M + 2]) {
  constexpr Winograd<M> matrices = {};
  to_points(matrices.filter, taps, at_points);
}

// A^T: its even rows take the sums of two points' values, its odd ones the differences.
template <int M>
PYCONV_DEVICE void transform_output(const float (&at_points)[M + 2], float (&outputs)[M]) {
  constexpr Winograd<M> matrices = {};
  float pairs[2][M / 2];
  PYCONV_UNROLL
  for (int i = 0; i < M / 2; ++i) {
    pairs[0][i] = at_points[2 * i + 1] + at_points[2 * i + 2];
    pairs[1][i] = at_points[2 * i + 1] - at_points[2 * i + 2];
  }
  PYCONV_UNROLL
  for (int row = 0; row < M; ++row) {
    float sum = float(matrices.output[row][1]) * pairs[row % 2][0];
    PYCONV_UNROLL
    for (int i = 1; i < M / 2; ++i) sum = fused(float(matrices.output[row][2 * i + 1]), pairs[row % 2][i], sum);
    if (row == 0) sum += at_points[0];
    if (row == M - 1) sum += at_points[M + 1];
    outputs[row] = sum;
  }
}

}  // namespace pyconv
