// ldmatrix on its own: one warp loads COUNT matrices and stores its registers.
#include "common/ldmatrix.h"
#include "common/vector.h"

namespace pyconv {

// x[COUNT][8][8] -> y[32][COUNT]. Every other row of the shared array is left out: rows may lie anywhere.
template <int COUNT, bool TRANSPOSED>
__global__ void __launch_bounds__(32) ldmatrix_registers(const uint16_t* x, uint32_t* y) {
  typedef Vector<uint16_t, 8> Row;
  PYCONV_SHARED(Row, rows, [8 * COUNT * 2]);
  const int lane = int(threadIdx.x);
  for (int i = lane; i < 8 * COUNT * 8; i += 32) rows[i / 8 * 2].element[i % 8] = x[i];
  __syncwarp();
  uint32_t fragment[COUNT];
  const void* row = &rows[lane % (8 * COUNT) * 2];  // lanes past 8 * COUNT give an address that is not used
  if constexpr (TRANSPOSED)
    ldmatrix_transposed(fragment, row);
  else
    ldmatrix(fragment, row);
  for (int i = 0; i < COUNT; ++i) y[lane * COUNT + i] = fragment[i];
}

}  // namespace pyconv
