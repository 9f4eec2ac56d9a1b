// Division by a number that is known at launch: a multiplication, an addition and a shift instead of some twenty
// instructions.
//
//   n / divisor = (floor(n * multiplier / 2^32) + n) >> shift          0 <= n < 2^31
//
//   shift = ceil(log2(divisor))        multiplier = floor(2^32 * (2^shift - divisor) / divisor) + 1
//
// After T. Granlund and P. Montgomery, Division by Invariant Integers using Multiplication (1994), figure 4.1.
// Python's twin is in conv2d/implicit_gemm_plan.py.
#pragma once
#include "common/cuda.h"

namespace pyconv {

struct Divisor {
  int32_t divisor;
  uint32_t multiplier;
  int32_t shift;
};

PYCONV_DEVICE int quotient(int n, const Divisor& by) {
  const uint32_t high = uint32_t(uint64_t(uint32_t(n)) * by.multiplier >> 32);
  return int((high + uint32_t(n)) >> by.shift);
}

// n / divisor; what is left over goes to `rest`.
PYCONV_DEVICE int quotient(int n, const Divisor& by, int& rest) {
  const int whole = quotient(n, by);
  rest = n - whole * by.divisor;
  return whole;
}

}  // namespace pyconv
