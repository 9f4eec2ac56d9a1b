// Vectors of elements that move in one memory instruction: 16 bytes are one LDG.128, LDS.128 or STG.128.
#pragma once
#include "common/cuda.h"

namespace pyconv {

// N elements side by side, aligned to their whole size (which must be a power of two, at most 16 bytes).
template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
  static_assert((sizeof(T) * N & (sizeof(T) * N - 1)) == 0 && sizeof(T) * N <= 16,
                "a memory instruction moves 1, 2, 4, 8 or 16 bytes");
  T element[N];
};

// Elements of T that one 16-byte access moves.
template <class T>
constexpr int kVector16 = 16 / int(sizeof(T));

// `at` must be aligned to the vector.
template <int N, class T>
PYCONV_DEVICE Vector<T, N> load_vector(const T* at) {
#if defined(PYCONV_EMULATED)
  ::pyconv::emulator::check_aligned(at, sizeof(Vector<T, N>));
#endif
  return *reinterpret_cast<const Vector<T, N>*>(at);
}

template <int N, class T>
PYCONV_DEVICE void store_vector(T* at, const Vector<T, N>& vector) {
#if defined(PYCONV_EMULATED)
  ::pyconv::emulator::check_aligned(at, sizeof(Vector<T, N>));
#endif
  *reinterpret_cast<Vector<T, N>*>(at) = vector;
}

}  // namespace pyconv
