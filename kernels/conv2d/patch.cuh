// A patch of the input in shared memory: the pixels that the taps of a tile of outputs reach, padding included as
// zeros, for a chunk of channels. Elements are widened to what sums are kept in once, when staged, and not at each
// of their uses.
//
//   [channel][image][row][column]     a "place" is an element of one channel
//
// With stride 2, neighbouring outputs read every second column; were those two words apart, two lanes would meet
// in every bank. A row therefore keeps its columns apart by residue: column u lies at
// u % column_step * column_pitch + u / column_step, and neighbouring outputs read neighbouring words.
#pragma once
#include "common/numbers.h"
#include "common/vector.h"
#include "conv2d/tensor.cuh"

namespace pyconv {

// Decided by patch.py; same fields, same order. Pitches are in elements.
struct Patch {
  int32_t images;
  int32_t row_unit, column_unit;  // input rows between two places: the patch leaves out what no tap reads
  int32_t column_step;            // places between neighbouring outputs of a row
  int32_t column_pitch, row_pitch, image_pitch, channel_pitch;

  PYCONV_HOST_DEVICE int places() const { return images * image_pitch; }
  PYCONV_HOST_DEVICE int column(int u) const { return u % column_step * column_pitch + u / column_step; }
};

// Where each place of the patch lies in `in`, or -1 in the padding. The first place is
// in(first_image, channel, first_row, first_column), which may be padding too.
template <int kThreads, class T, Layout kLayout>
PYCONV_DEVICE void find_sources(int64_t* sources, const Patch& patch, const Tensor<const T, kLayout>& in,
                                int images, int first_image, int channel, int first_row, int first_column) {
  for (int place = int(threadIdx.x); place < patch.places(); place += kThreads) {
    const int image = first_image + place / patch.image_pitch;
    const int patch_row = place % patch.image_pitch / patch.row_pitch, within = place % patch.row_pitch;
    const int patch_column = within % patch.column_pitch * patch.column_step + within / patch.column_pitch;
    const int row = first_row + patch_row * patch.row_unit;
    const int column = first_column + patch_column * patch.column_unit;
    const bool is_inside = image < images && row >= 0 && row < in.rows && column >= 0 && column < in.columns;
    sources[place] = is_inside ? in.offset(image, channel, row, column) : -1;
  }
}

// nchw: a warp reads neighbouring columns of one channel.
template <int kThreads, class T, class Sum>
PYCONV_DEVICE void stage_nchw(Sum* to, const Patch& patch, const int64_t* sources, const T* in, int64_t in_stride,
                              int channels) {
  for (int place = int(threadIdx.x); place < patch.places(); place += kThreads) {
    const int64_t source = sources[place];
    for (int c = 0; c < channels; ++c)
      to[c * patch.channel_pitch + place] = source < 0 ? Sum(0) : widen(in[source + c * in_stride]);
  }
}

// nhwc: kLanes neighbouring lanes read the neighbouring channels of one pixel, V at a time. With a pitch between
// channels of a multiple of 32 words and 4, a warp writes to all banks.
template <int kThreads, int V, class T, class Sum>
PYCONV_DEVICE void stage_nhwc(Sum* to, const Patch& patch, const int64_t* sources, const T* in, int channels) {
  constexpr int kLanes = 8 / V;  // 8 channels of float are a sector of 32 bytes
  for (int place = int(threadIdx.x) / kLanes; place < patch.places(); place += kThreads / kLanes) {
    const int64_t source = sources[place];
    for (int c = int(threadIdx.x) % kLanes * V; c < channels; c += kLanes * V) {
      Vector<T, V> run = {};
      if (source >= 0) run = load_vector<V>(in + source + c);
      PYCONV_UNROLL
      for (int v = 0; v < V; ++v) to[(c + v) * patch.channel_pitch + place] = widen(run.element[v]);
    }
  }
}

// Fills the patch with `channels` channels from `first_channel` on, counted from that of the sources.
// `is_aligned`: in nhwc, where a pixel's channels begin and how many there are is a multiple of V at every pixel.
template <int kThreads, int V, class T, Layout kLayout, class Sum>
PYCONV_DEVICE void stage_patch(Sum* to, const Patch& patch, const int64_t* sources,
                               const Tensor<const T, kLayout>& in, int first_channel, int channels,
                               bool is_aligned) {
  const int64_t in_stride = in.offset(0, 1, 0, 0);
  const T* from = in.data + first_channel * in_stride;
  if (kLayout == kNchw)
    stage_nchw<kThreads>(to, patch, sources, from, in_stride, channels);
  else if (is_aligned)
    stage_nhwc<kThreads, V>(to, patch, sources, from, channels);
  else
    stage_nhwc<kThreads, 1>(to, patch, sources, from, channels);
}

}  // namespace pyconv
