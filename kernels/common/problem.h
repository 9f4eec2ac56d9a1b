// The problem descriptors: one convolution or one pooling, by value, with nothing computed elsewhere.
//
// These are the C twins of Conv2dProblem and Pool2dProblem in pyconv/problem.py: same fields, same
// order. tests/test_problem.py passes descriptors through both and compares every derived size.
//
//   x[n,c,h,w]   w[k,c/groups,r,s]   y[n,k,p,q]
//   h = p*stride_h - pad_top + r*dilation_h          (the same for w, with pad_left)
#pragma once
#ifdef __CUDACC_RTC__  // NVRTC has no standard headers
typedef int int32_t;
typedef long long int64_t;
#else
#include <cstdint>
#endif

#if defined(__CUDACC__)
#define PYCONV_HOST_DEVICE __host__ __device__
#else
#define PYCONV_HOST_DEVICE
#endif

namespace pyconv {

enum DType : int32_t { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBFloat16 = 3 };

// nchw: x is [n][c][h][w], w is [k][c/groups][r][s], y is [n][k][p][q] in memory (torch contiguous).
// nhwc: x is [n][h][w][c], w is [k][r][s][c/groups], y is [n][p][q][k] in memory (torch channels_last).
enum Layout : int32_t { kNchw = 0, kNhwc = 1 };

// A padded image and a dilated filter stay below this along each axis, far beyond any memory, so that 64-bit
// arithmetic on places, tiles beyond the edge included, cannot overflow. Descriptors that pass it are refused.
constexpr int64_t kExtentLimit = int64_t{1} << 47;

// Positions of a filter (or window) of `size` taps along one axis of `extent` elements. Never negative.
PYCONV_HOST_DEVICE inline int64_t output_extent(int64_t extent, int64_t pad_before, int64_t pad_after,
                                                int64_t size, int64_t stride, int64_t dilation) {
  const int64_t room = extent + pad_before + pad_after - dilation * (size - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

struct Conv2dProblem {
  int64_t n, c, h, w;  // input
  int64_t k, r, s;     // filters
  int64_t stride_h, stride_w;
  int64_t pad_top, pad_bottom, pad_left, pad_right;
  int64_t dilation_h, dilation_w;
  int64_t groups;
  int32_t dtype;   // DType
  int32_t layout;  // Layout

  PYCONV_HOST_DEVICE int64_t p() const { return output_extent(h, pad_top, pad_bottom, r, stride_h, dilation_h); }
  PYCONV_HOST_DEVICE int64_t q() const { return output_extent(w, pad_left, pad_right, s, stride_w, dilation_w); }
  PYCONV_HOST_DEVICE int64_t group_c() const { return c / groups; }
  PYCONV_HOST_DEVICE int64_t group_k() const { return k / groups; }
  PYCONV_HOST_DEVICE int64_t x_size() const { return n * c * h * w; }
  PYCONV_HOST_DEVICE int64_t w_size() const { return k * group_c() * r * s; }
  PYCONV_HOST_DEVICE int64_t y_size() const { return n * k * p() * q(); }
};

struct Pool2dProblem {
  int64_t n, c, h, w;  // input
  int64_t r, s;        // window
  int64_t stride_h, stride_w;
  int64_t pad_top, pad_bottom, pad_left, pad_right;
  int64_t dilation_h, dilation_w;
  int32_t ceil_mode;  // 0 or 1
  int32_t dtype;      // DType
  int32_t layout;     // Layout

  PYCONV_HOST_DEVICE int64_t p() const { return extent(h, pad_top, pad_bottom, r, stride_h, dilation_h); }
  PYCONV_HOST_DEVICE int64_t q() const { return extent(w, pad_left, pad_right, s, stride_w, dilation_w); }
  PYCONV_HOST_DEVICE int64_t x_size() const { return n * c * h * w; }
  PYCONV_HOST_DEVICE int64_t y_size() const { return n * c * p() * q(); }

 private:
  // With ceil_mode a last, partial window counts if it starts inside the input or its leading padding.
  PYCONV_HOST_DEVICE int64_t extent(int64_t size, int64_t pad_before, int64_t pad_after, int64_t window,
                                    int64_t stride, int64_t dilation) const {
    if (!ceil_mode) return output_extent(size, pad_before, pad_after, window, stride, dilation);
    const int64_t count = output_extent(size, pad_before, pad_after + stride - 1, window, stride, dilation);
    return count > 0 && (count - 1) * stride >= size + pad_before ? count - 1 : count;
  }
};

}  // namespace pyconv
