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

// Where the first place of a patch lies in the input, in the padding perhaps: in(image, channel, row, column).
struct PatchOrigin {
  int image, channel, row, column;
};

// Where a place lies in its image: row * columns + column; -1 in the padding and beyond the last image.
template <class T, Layout kLayout>
PYCONV_DEVICE int source_of(int place, const Patch& patch, const PatchOrigin& origin,
                            const Tensor<const T, kLayout>& in, int images) {
  const int image = origin.image + place / patch.image_pitch;
  const int patch_row = place % patch.image_pitch / patch.row_pitch, within = place % patch.row_pitch;
  const int patch_column = within % patch.column_pitch * patch.column_step + within / patch.column_pitch;
  const int row = origin.row + patch_row * patch.row_unit;
  const int column = origin.column + patch_column * patch.column_unit;
  const bool is_inside = image < images && row >= 0 && row < in.rows && column >= 0 && column < in.columns;
  return is_inside ? row * in.columns + column : -1;
}

// Finds the sources of all places once, where many chunks of channels have the same.
template <int kThreads, class T, Layout kLayout>
PYCONV_DEVICE void find_sources(int* sources, const Patch& patch, const PatchOrigin& origin,
                                const Tensor<const T, kLayout>& in, int images) {
  for (int place = int(threadIdx.x); place < patch.places(); place += kThreads)
    sources[place] = source_of(place, patch, origin, in, images);
}

// The offset of a source from the first element of its patch's first image.
template <class T, Layout kLayout>
PYCONV_DEVICE int64_t offset_of(int place, int source, const Patch& patch, const Tensor<const T, kLayout>& in) {
  const int image = patch.images > 1 ? place / patch.image_pitch : 0;
  return image * in.offset(1, 0, 0, 0) + source * in.offset(0, 0, 0, 1);
}

// nchw: a warp reads neighbouring columns of one channel.
template <int kThreads, class T, Layout kLayout, class Sum, class Source>
PYCONV_DEVICE void stage_by_pixels(Sum* to, const Patch& patch, const Tensor<const T, kLayout>& in, const T* from,
                                   int channels, const Source& source_at) {
  const int64_t channel_stride = in.offset(0, 1, 0, 0);
  for (int place = int(threadIdx.x); place < patch.places(); place += kThreads) {
    const int source = source_at(place);
    const T* pixel = from + offset_of(place, source, patch, in);
    for (int c = 0; c < channels; ++c)
      to[c * patch.channel_pitch + place] = source < 0 ? Sum(0) : widen(pixel[c * channel_stride]);
  }
}

// nhwc: kLanes neighbouring lanes read the neighbouring channels of one pixel, V at a time. With a pitch between
// channels of a multiple of 32 words and 4, a warp writes to all banks.
template <int kThreads, int V, class T, Layout kLayout, class Sum, class Source>
PYCONV_DEVICE void stage_by_channels(Sum* to, const Patch& patch, const Tensor<const T, kLayout>& in,
                                     const T* from, int channels, const Source& source_at) {
  constexpr int kLanes = 8 / V;  // 8 channels of float are a sector of 32 bytes
  for (int place = int(threadIdx.x) / kLanes; place < patch.places(); place += kThreads / kLanes) {
    const int source = source_at(place);
    const T* pixel = from + offset_of(place, source, patch, in);
    for (int c = int(threadIdx.x) % kLanes * V; c < channels; c += kLanes * V) {
      Vector<T, V> run = {};
      if (source >= 0) run = load_vector<V>(pixel + c);
      PYCONV_UNROLL
      for (int v = 0; v < V; ++v) to[(c + v) * patch.channel_pitch + place] = widen(run.element[v]);
    }
  }
}

// Fills the patch with `channels` channels from origin.channel + first_channel on. `is_aligned`: in nhwc, where a
// pixel's channels begin and how many there are is a multiple of V at every pixel.
template <int kThreads, int V, class T, Layout kLayout, class Sum>
PYCONV_DEVICE void stage_patch(Sum* to, const Patch& patch, const PatchOrigin& origin, const int* sources,
                               const Tensor<const T, kLayout>& in, int first_channel, int channels,
                               bool is_aligned) {
  const T* from = &in(origin.image, origin.channel + first_channel, 0, 0);
  auto source_at = [&](int place) { return sources[place]; };
  if (kLayout == kNchw)
    stage_by_pixels<kThreads>(to, patch, in, from, channels, source_at);
  else if (is_aligned)
    stage_by_channels<kThreads, V>(to, patch, in, from, channels, source_at);
  else
    stage_by_channels<kThreads, 1>(to, patch, in, from, channels, source_at);
}

}  // namespace pyconv
