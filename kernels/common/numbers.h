// Arithmetic on the element types of elements.h, for CUDA: how an element is widened and a sum is narrowed, by the
// GPU's instructions or, in the emulator, in bits.
#pragma once
#include "common/cuda.h"
#include "common/elements.h"

namespace pyconv {

#if defined(PYCONV_EMULATED)

PYCONV_DEVICE float widen(Half h) { return half_to_float(h); }
PYCONV_DEVICE Half narrow_to_half(float value) {
  return value != value ? Half{uint16_t(0x7fffu)} : float_to_half(value);  // cvt.rn gives this NaN
}
PYCONV_DEVICE BFloat16 narrow_to_bfloat16(float value) {
  return value != value ? BFloat16{uint16_t(0x7fffu)} : float_to_bfloat16(value);  // and this
}

#else

PYCONV_DEVICE uint32_t float_bits(float value) { return __float_as_uint(value); }
PYCONV_DEVICE float float_of_bits(uint32_t bits) { return __uint_as_float(bits); }

PYCONV_DEVICE float widen(Half h) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(h.bits));
  return value;
}
PYCONV_DEVICE Half narrow_to_half(float value) {
  Half h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(value));
  return h;
}
PYCONV_DEVICE BFloat16 narrow_to_bfloat16(float value) {
  BFloat16 b;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(b.bits) : "f"(value));  // sm_80 and later
  return b;
}

#endif

PYCONV_DEVICE float widen(BFloat16 b) { return float_of_bits(uint32_t(b.bits) << 16); }
PYCONV_DEVICE float widen(float value) { return value; }
PYCONV_DEVICE double widen(double value) { return value; }

// narrow<T>(sum): the element that a sum is stored as.
PYCONV_DEVICE void narrow_into(float& element, float value) { element = value; }
PYCONV_DEVICE void narrow_into(double& element, double value) { element = value; }
PYCONV_DEVICE void narrow_into(Half& element, float value) { element = narrow_to_half(value); }
PYCONV_DEVICE void narrow_into(BFloat16& element, float value) { element = narrow_to_bfloat16(value); }
template <class T>
PYCONV_DEVICE T narrow(Accumulator<T> value) {
  T element;
  narrow_into(element, value);
  return element;
}

// a*b + c, rounded once.
PYCONV_DEVICE float fused(float a, float b, float c) {
#if defined(PYCONV_EMULATED)
  return __builtin_fmaf(a, b, c);
#else
  return __fmaf_rn(a, b, c);
#endif
}
PYCONV_DEVICE double fused(double a, double b, double c) {
#if defined(PYCONV_EMULATED)
  return __builtin_fma(a, b, c);
#else
  return __fma_rn(a, b, c);
#endif
}

}  // namespace pyconv
