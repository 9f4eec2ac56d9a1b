// A warp's 32 lanes talking to each other without shared memory.
//
// warp_sum adds in a butterfly: at distance 16, 8, 4, 2, 1 every lane adds its partner's value to its own.
//
//   distance 4     lane  0   1   2   3   4   5   6   7          (8 lanes drawn)
//                        |   |   |   |   |   |   |   |
//                        +---|---|---|---+   |   |   |          0 and 4 exchange, 1 and 5, ...
//   distance 2           0+4 1+5 2+6 3+7 0+4 1+5 2+6 3+7        then 0 and 2, 1 and 3, ...
//   distance 1           all even lanes, all odd lanes          then 0 and 1, ...
//
// The order is fixed, so the result is the same from run to run; and as addition commutes, both partners get the
// same bits at every step: all lanes end with the same bits. All 32 lanes must take part.
#pragma once
#include "common/cuda.h"

namespace pyconv {

constexpr uint32_t kWholeWarp = 0xffffffffu;

// The sum of `value` over lanes that differ in the bits of LANES - 1: over the whole warp, or over aligned groups
// of 2, 4, 8 or 16 lanes.
template <int LANES = kWarpSize, class T>
PYCONV_DEVICE T warp_sum(T value) {
  static_assert(LANES >= 1 && LANES <= kWarpSize && (LANES & (LANES - 1)) == 0,
                "groups of a butterfly are powers of two");
  PYCONV_UNROLL
  for (int distance = LANES / 2; distance > 0; distance /= 2)
    value += __shfl_xor_sync(kWholeWarp, value, distance);
  return value;
}

// One bit per lane: whether `condition` holds there.
PYCONV_DEVICE uint32_t warp_ballot(bool condition) { return __ballot_sync(kWholeWarp, condition); }
PYCONV_DEVICE bool warp_any(bool condition) { return warp_ballot(condition) != 0; }

}  // namespace pyconv
