// The matrices of conv2d/winograd.h, written out; one dimension of its transforms, as conv2d/winograd.cuh has them.
#include "conv2d/winograd.cuh"

namespace pyconv {

// out = B^T, then G, then A^T.
template <int M>
__global__ void winograd_matrices(double* out) {
  const Winograd<M> matrices = {};
  for (const auto& row : matrices.input)
    for (double element : row) *out++ = element;
  for (const auto& row : matrices.filter)
    for (double element : row) *out++ = element;
  for (const auto& row : matrices.output)
    for (double element : row) *out++ = element;
}

// out = B^T d, then G g, then A^T p, of in = d, g, p.
template <int M>
__global__ void winograd_transforms(const float* in, float* out) {
  float d[M + 2], g[3], p[M + 2], points[M + 2], outputs[M];
  for (int i = 0; i < M + 2; ++i) d[i] = *in++;
  for (int i = 0; i < 3; ++i) g[i] = *in++;
  for (int i = 0; i < M + 2; ++i) p[i] = *in++;
  transform_input<M>(d, points);
  for (int i = 0; i < M + 2; ++i) *out++ = points[i];
  transform_filter<M>(g, points);
  for (int i = 0; i < M + 2; ++i) *out++ = points[i];
  transform_output<M>(p, outputs);
  for (int i = 0; i < M; ++i) *out++ = outputs[i];
}

}  // namespace pyconv
