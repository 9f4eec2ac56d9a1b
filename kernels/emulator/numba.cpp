// What a kernel written in Numba calls when it runs on the CPU. pyconv/backends/numba_rewrite.py turns each access,
// barrier and index of its Python source into one of these calls; Numba compiles the rest.
//
// Such code lies in no library, so a place in it is a number that the rewriting gave and Python reads back: the file
// and the line.
#include <cstring>

#include "emulator/memory.h"
#include "emulator/runtime.h"

#define PYCONV_EMULATED  // the host's conversions of 16-bit elements
#include "common/numbers.h"

namespace pyconv {
namespace emulator {

static const void* place_of(int64_t number) { return launch.code + number; }

static uint3 extent_of(int which) {
  switch (which) {
    case 0: return current->index;
    case 1: return launch.block_index;
    case 2: return launch.block_extent;
    default: return launch.grid;
  }
}

extern "C" {

// threadIdx, blockIdx, blockDim, gridDim of one axis.
PYCONV_EXPORT int64_t pyconv_numba_index(int32_t which, int32_t axis) {
  const uint3 index = extent_of(which);
  return axis == 0 ? index.x : axis == 1 ? index.y : index.z;
}

PYCONV_EXPORT void pyconv_numba_read(const void* at, int64_t bytes, int64_t place) {
  check_access(at, size_t(bytes), Access::kRead, place_of(place));
}
PYCONV_EXPORT void pyconv_numba_write(void* at, int64_t bytes, int64_t place) {
  check_access(at, size_t(bytes), Access::kWrite, place_of(place));
}

// An index that is too large, or negative: Numba would count it from the end. On a GPU it checks neither.
PYCONV_EXPORT void pyconv_numba_outside(int64_t index, int64_t axis, int64_t extent, int64_t place) {
  find("out of bounds", place_of(place), nullptr, "index %lld of axis %lld, which has %lld elements",
       (long long)index, (long long)axis, (long long)extent);
  abandon();
}

// Half precision, which Numba has on GPUs only.
PYCONV_EXPORT float pyconv_numba_widen(uint16_t bits) { return widen(Half{bits}); }
PYCONV_EXPORT uint16_t pyconv_numba_narrow(float value) { return narrow_to_half(value).bits; }

// The shared array that the source makes at this place.
PYCONV_EXPORT void* pyconv_numba_shared(int64_t bytes, const char* name, int64_t place) {
  return shared(place_of(place), size_t(bytes), 16, name);
}

PYCONV_EXPORT void pyconv_numba_syncthreads(int64_t place) { sync_block_at(int(place & 0xffff), place_of(place)); }
PYCONV_EXPORT void pyconv_numba_syncwarp(int64_t place) { wait_for_warp(kFullMask, place_of(place)); }

// The value of the lane whose number differs by `lane_mask`, in place of one's own.
PYCONV_EXPORT void pyconv_numba_shuffle_xor(void* value, int64_t bytes, int64_t mask, int64_t lane_mask) {
  publish(value, int(bytes), unsigned(mask));
  memcpy(value, published(current->lane ^ int(lane_mask)), size_t(bytes));
  finish_reading(unsigned(mask));
}

}  // extern "C"

}  // namespace emulator
}  // namespace pyconv
