// How a thread of an implicit GEMM walks along gemm_k in fprop and dgrad: through the channels of one tap, then
// those of the next.
//
//   k = (tap row * column taps + tap column) * channels + channel
//
// A tile of the matrix is 64 bytes of k, and the thread always has the same place within it. So it divides by
// nothing: each tile it goes on by the same distance, and carries where a tap ends.
#pragma once
#include "common/cuda.h"

namespace pyconv {

// A row that no tap and no pixel brings back into the image: both are below 2^30 (conv2d/restrictions.py).
constexpr int kNowhere = -(1 << 30);

struct TapWalk {
  int channel, column, row;  // of the tap within its class (gather.cuh); past the last tap row there are no terms
};

// `channels` is at least 1: without any there are no terms to walk along.
PYCONV_DEVICE void advance(TapWalk& walk, int distance, int channels, int column_taps) {
  walk.channel += distance;
  while (walk.channel >= channels) {
    walk.channel -= channels;
    if (++walk.column == column_taps) walk.column = 0, ++walk.row;
  }
}

}  // namespace pyconv
