// Direct convolution, naive: the definition as a kernel. Page one of the course in README.md.
//
//   fprop   y[n,k,p,q]  = bias[k] + sum over c,r,s of  x[n,c,h,w] * w[k,c,r,s]
//   dgrad   dx[n,c,h,w] =           sum over k,r,s of dy[n,k,p,q] * w[k,c,r,s]
//   wgrad   dw[k,c,r,s] =           sum over n,p,q of dy[n,k,p,q] * x[n,c,h,w]
//
//   where h = p*stride_h - pad_top  + r*dilation_h
//         w = q*stride_w - pad_left + s*dilation_w
//
// Layouts: both, with any groups; c of the filter counts within its group, as in w[k,c/groups,r,s].
// Thread:  one element of the result. Its loops are the sum of the equation, in the order of the equation.
// Block:   kThreads elements that are neighbours in memory, so that a warp writes whole cache lines.
//
// Every product loads both of its factors: 8 bytes of float for one multiplication and addition. Nothing is reused
// but what the caches happen to keep. What that costs, and how to get rid of it, is what the course is about.
//
// Every loop adds into a sum of its own, which it hands to the loop around it: the rounding error then grows with
// the longest loop and not with the product of them all.
#include "common/numbers.h"
#include "conv2d/tensor.cuh"

namespace pyconv {

// Blocks that a multiprocessor holds at least: 64 registers a thread. Told nothing, the compiler aims at five and
// spills.
constexpr int kBlocks = 4;

// The element that this thread computes; in the last block it may lie beyond the tensor.
PYCONV_DEVICE int64_t own_element() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }

// The row of x that tap r of output row p reads, or -1 if it lies in the padding. Columns alike.
PYCONV_DEVICE int input_at(int output, int tap, int stride, int pad, int dilation, int inputs) {
  const int input = output * stride - pad + tap * dilation;
  return input < inputs ? input : -1;  // negative in the leading padding
}

// The inverse: the output row whose tap r reads this row of x, or -1 if there is none.
PYCONV_DEVICE int output_at(int input, int tap, int stride, int pad, int dilation, int outputs) {
  const int scaled = input + pad - tap * dilation;
  if (scaled < 0 || scaled % stride != 0 || scaled / stride >= outputs) return -1;
  return scaled / stride;
}

template <class T, Layout kLayout, int kThreads>
__global__ void __launch_bounds__(kThreads, kBlocks)
    direct_naive_fprop(Conv2dProblem problem, const T* __restrict__ x_data, const T* __restrict__ w_data,
                       const T* __restrict__ bias, T* __restrict__ y_data) {
  if (own_element() >= problem.y_size()) return;
  const int group_c = int(problem.group_c()), group_k = int(problem.group_k());
  const Tensor<const T, kLayout> x(x_data, problem.c, problem.h, problem.w);
  const Tensor<const T, kLayout> filter(w_data, group_c, problem.r, problem.s);
  const Tensor<T, kLayout> y(y_data, problem.k, problem.p(), problem.q());

  const Place at = y.place(own_element());
  const int n = at.outer, k = at.channel, p = at.row, q = at.column;
  const int first_c = k / group_k * group_c;  // of the group

  Accumulator<T> sum = 0;
  for (int c = 0; c < group_c; ++c) {
    Accumulator<T> channel_sum = 0;
    for (int r = 0; r < filter.rows; ++r) {
      const int h = input_at(p, r, problem.stride_h, problem.pad_top, problem.dilation_h, x.rows);
      if (h < 0) continue;  // padding takes no part
      for (int s = 0; s < filter.columns; ++s) {
        const int w = input_at(q, s, problem.stride_w, problem.pad_left, problem.dilation_w, x.columns);
        if (w < 0) continue;
        channel_sum = fused(widen(x(n, first_c + c, h, w)), widen(filter(k, c, r, s)), channel_sum);
      }
    }
    sum += channel_sum;
  }
  y(n, k, p, q) = narrow<T>(bias ? sum + widen(bias[k]) : sum);
}

template <class T, Layout kLayout, int kThreads>
__global__ void __launch_bounds__(kThreads, kBlocks)
    direct_naive_dgrad(Conv2dProblem problem, const T* __restrict__ dy_data, const T* __restrict__ w_data,
                       T* __restrict__ dx_data) {
  if (own_element() >= problem.x_size()) return;
  const int group_c = int(problem.group_c()), group_k = int(problem.group_k());
  const Tensor<const T, kLayout> dy(dy_data, problem.k, problem.p(), problem.q());
  const Tensor<const T, kLayout> filter(w_data, group_c, problem.r, problem.s);
  const Tensor<T, kLayout> dx(dx_data, problem.c, problem.h, problem.w);

  const Place at = dx.place(own_element());
  const int n = at.outer, c = at.channel, h = at.row, w = at.column;
  const int first_k = c / group_c * group_k;  // of the group

  Accumulator<T> sum = 0;
  for (int k = first_k; k < first_k + group_k; ++k) {
    Accumulator<T> filter_sum = 0;
    for (int r = 0; r < filter.rows; ++r) {
      const int p = output_at(h, r, problem.stride_h, problem.pad_top, problem.dilation_h, dy.rows);
      if (p < 0) continue;
      for (int s = 0; s < filter.columns; ++s) {
        const int q = output_at(w, s, problem.stride_w, problem.pad_left, problem.dilation_w, dy.columns);
        if (q < 0) continue;
        filter_sum = fused(widen(dy(n, k, p, q)), widen(filter(k, c % group_c, r, s)), filter_sum);
      }
    }
    sum += filter_sum;
  }
  dx(n, c, h, w) = narrow<T>(sum);
}

template <class T, Layout kLayout, int kThreads>
__global__ void __launch_bounds__(kThreads, kBlocks)
    direct_naive_wgrad(Conv2dProblem problem, const T* __restrict__ x_data, const T* __restrict__ dy_data,
                       T* __restrict__ dw_data) {
  if (own_element() >= problem.w_size()) return;
  const int group_c = int(problem.group_c()), group_k = int(problem.group_k());
  const Tensor<const T, kLayout> x(x_data, problem.c, problem.h, problem.w);
  const Tensor<const T, kLayout> dy(dy_data, problem.k, problem.p(), problem.q());
  const Tensor<T, kLayout> dw(dw_data, group_c, problem.r, problem.s);

  const Place at = dw.place(own_element());
  const int k = at.outer, c = at.channel, r = at.row, s = at.column;
  const int first_c = k / group_k * group_c;  // of the group

  Accumulator<T> sum = 0;
  for (int n = 0; n < problem.n; ++n) {
    Accumulator<T> image_sum = 0;
    for (int p = 0; p < dy.rows; ++p) {
      const int h = input_at(p, r, problem.stride_h, problem.pad_top, problem.dilation_h, x.rows);
      if (h < 0) continue;
      Accumulator<T> row_sum = 0;
      for (int q = 0; q < dy.columns; ++q) {
        const int w = input_at(q, s, problem.stride_w, problem.pad_left, problem.dilation_w, x.columns);
        if (w < 0) continue;
        row_sum = fused(widen(dy(n, k, p, q)), widen(x(n, first_c + c, h, w)), row_sum);
      }
      image_sum += row_sum;
    }
    sum += image_sum;
  }
  dw(k, c, r, s) = narrow<T>(sum);
}

}  // namespace pyconv
