// A dense tensor of four indices in either layout: x[n,c,h,w], w[k,c/groups,r,s] and y[n,k,p,q] alike.
#pragma once
#include "common/cuda.h"

namespace pyconv {

// Indices of one element. `outer` is n (k of a filter), `channel` c or k, `row` h, p or r, `column` w, q or s.
struct Place {
  int outer, channel, row, column;
};

// Sizes and indices fit an int (conv2d/restrictions.py), offsets need not.
template <class T, Layout kLayout>
struct Tensor {
  T* data;
  int channels, rows, columns;

  PYCONV_HOST_DEVICE Tensor(T* data, int64_t channels, int64_t rows, int64_t columns)
      : data(data), channels(int(channels)), rows(int(rows)), columns(int(columns)) {}

  PYCONV_HOST_DEVICE int64_t offset(int outer, int channel, int row, int column) const {
    return kLayout == kNhwc ? ((int64_t(outer) * rows + row) * columns + column) * channels + channel
                            : ((int64_t(outer) * channels + channel) * rows + row) * columns + column;
  }
  PYCONV_HOST_DEVICE T& operator()(int outer, int channel, int row, int column) const {
    return data[offset(outer, channel, row, column)];
  }
  // The inverse of offset().
  PYCONV_HOST_DEVICE Place place(int64_t offset) const {
    Place at;
    if (kLayout == kNhwc) at.channel = int(offset % channels), offset /= channels;
    at.column = int(offset % columns), offset /= columns;
    at.row = int(offset % rows), offset /= rows;
    if (kLayout == kNchw) at.channel = int(offset % channels), offset /= channels;
    at.outer = int(offset);
    return at;
  }
};

}  // namespace pyconv
