// ldmatrix: a warp loads 8x8 matrices of 16-bit elements from shared memory, already dealt to lanes the way
// mma.sync wants its operands (mma.h).
//
// A matrix is 8 rows of 16 bytes, which may lie anywhere (aligned to 16). Lane i gives the address of row i mod 8
// of matrix i / 8: COUNT matrices take addresses from the first 8 * COUNT lanes. Every lane receives one 32-bit
// register per matrix: two neighbours of one row, or, transposed, two neighbours of one column.
//
//   ldmatrix: lane that receives (row, column)          ldmatrix_transposed
//
//           col  0  1   2  3   4  5   6  7                      col  0   1   2   3   4   5   6   7
//   row 0        0  0   1  1   2  2   3  3              row 0        0   4   8  12  16  20  24  28    low half
//   row 1        4  4   5  5   6  6   7  7              row 1        0   4   8  12  16  20  24  28    high half
//   row 2        8  8   9  9  10 10  11 11              row 2        1   5   9  13  17  21  25  29    low half
//    ...        low high                                 ...
//   row 7       28 28  29 29  30 30  31 31              row 7        3   7  11  15  19  23  27  31    high half
//
// 32-bit elements (tf32) can be loaded too, as pairs of halves: a row is then 4 elements, and lane i receives
// element (i / 4, i mod 4). Only the plain form makes sense for them: transposing would tear the halves apart.
//
// Cost: a matrix is 128 bytes, one pass over the 32 banks if its 8 rows lie in different banks, that is if the
// row addresses differ in bits 4 to 6. Rows 128 bytes apart do not: that is why tiles are padded or swizzled.
#pragma once
#include "common/cp_async.h"

namespace pyconv {

#if defined(PYCONV_EMULATED)

namespace emulator {

template <bool TRANSPOSED>
PYCONV_EMULATED_MODEL inline void load_matrices(uint32_t* fragment, int count, const void* row) {
  const Exchange<const void*> rows(row);
  for (int matrix = 0; matrix < count; ++matrix) {
    uint16_t half[2];
    for (int i = 0; i < 2; ++i) {
      const int down = TRANSPOSED ? lane() % 4 * 2 + i : lane() / 4;
      const int across = TRANSPOSED ? lane() / 4 : lane() % 4 * 2 + i;
      half[i] = static_cast<const uint16_t*>(rows.of(8 * matrix + down))[across];
    }
    fragment[matrix] = half[0] | uint32_t(half[1]) << 16;
  }
}

// What lane i < 8 * count reads: the row whose address it gives.
PYCONV_DEVICE void touch_row(const void* row, int count) {
  if (lane() >= 8 * count) return;
  check_aligned(row, 16);
  touch(row, 16, /*is_write=*/false);
}

}  // namespace emulator

template <int COUNT>
PYCONV_DEVICE void ldmatrix(uint32_t (&fragment)[COUNT], const void* row) {
  ::pyconv::emulator::touch_row(row, COUNT);
  ::pyconv::emulator::load_matrices<false>(fragment, COUNT, row);
}
template <int COUNT>
PYCONV_DEVICE void ldmatrix_transposed(uint32_t (&fragment)[COUNT], const void* row) {
  ::pyconv::emulator::touch_row(row, COUNT);
  ::pyconv::emulator::load_matrices<true>(fragment, COUNT, row);
}

#else

PYCONV_DEVICE void ldmatrix(uint32_t (&fragment)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
               : "=r"(fragment[0])
               : "r"(shared_address(row))
               : "memory");
}
PYCONV_DEVICE void ldmatrix(uint32_t (&fragment)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(fragment[0]), "=r"(fragment[1])
               : "r"(shared_address(row))
               : "memory");
}
PYCONV_DEVICE void ldmatrix(uint32_t (&fragment)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(shared_address(row))
               : "memory");
}

PYCONV_DEVICE void ldmatrix_transposed(uint32_t (&fragment)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
               : "=r"(fragment[0])
               : "r"(shared_address(row))
               : "memory");
}
PYCONV_DEVICE void ldmatrix_transposed(uint32_t (&fragment)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(fragment[0]), "=r"(fragment[1])
               : "r"(shared_address(row))
               : "memory");
}
PYCONV_DEVICE void ldmatrix_transposed(uint32_t (&fragment)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(shared_address(row))
               : "memory");
}

#endif

}  // namespace pyconv
