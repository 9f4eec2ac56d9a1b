// Bias gradient: db[k] = sum over n, p, q of dy[n,k,p,q].
//
// nchw: one index per filter k; each of its n rows of P*Q elements is contiguous.
// nhwc: one index per vector of filters; the sum walks down the N*P*Q rows.
// Sums are kept per chunk and added chunk by chunk, so the rounding error grows with
// the number of chunks and not with the number of elements, and the order depends on the problem alone.
// 16-bit elements are summed in float and rounded once.
#include "common/simd.h"

namespace pyconv {
namespace PYCONV_ISA {
namespace {

constexpr int64_t kChunk = 512;     // nchw: elements of one partial sum, shared by all lanes
constexpr int64_t kChunkRows = 32;  // nhwc: rows of one partial sum, since there each lane is a sum of its own

template <class T>
Accumulator<T> sum_row(const T* row, int64_t count) {
  Accumulator<T> total = 0;
  for (int64_t begin = 0; begin < count; begin += kChunk) {
    const int64_t end = begin + kChunk < count ? begin + kChunk : count;
    Vec<T> partial = {};
    int64_t i = begin;
    for (; i + kLanes<T> <= end; i += kLanes<T>) partial += load(row + i);
    if (i < end) partial += load_partial(row + i, int(end - i));
    total += horizontal_sum<T>(partial);
  }
  return total;
}

// Elements below which waking a second thread costs more than it saves.
constexpr int64_t kSerial = 1 << 15;

// body(index) for every index; serially where there is little work, and by a rule of the problem alone.
template <class Body>
void for_each(int64_t count, const Conv2dProblem& problem, Body&& body) {
  if (problem.y_size() > kSerial) return parallel_for(count, [&](int64_t index, int) { body(index); });
  for (int64_t index = 0; index < count; ++index) body(index);
}

template <class T>
void nchw(const Conv2dProblem& problem, const T* dy, T* db) {
  const int64_t plane = problem.p() * problem.q();
  for_each(problem.k, problem, [&](int64_t k) {
    Accumulator<T> total = 0;
    for (int64_t n = 0; n < problem.n; ++n) total += sum_row(dy + (n * problem.k + k) * plane, plane);
    db[k] = narrow<T>(total);
  });
}

template <class T>
void nhwc(const Conv2dProblem& problem, const T* dy, T* db) {
  const int64_t rows = problem.n * problem.p() * problem.q();
  const int64_t blocks = (problem.k + kLanes<T> - 1) / kLanes<T>;
  for_each(blocks, problem, [&](int64_t block) {
    const int64_t k = block * kLanes<T>;
    const int count = int(problem.k - k < kLanes<T> ? problem.k - k : kLanes<T>);
    Vec<T> total = {};
    for (int64_t begin = 0; begin < rows; begin += kChunkRows) {
      const int64_t end = begin + kChunkRows < rows ? begin + kChunkRows : rows;
      Vec<T> partial = {};
      for (int64_t row = begin; row < end; ++row) {
        const T* from = dy + row * problem.k + k;
        partial += count == kLanes<T> ? load(from) : load_partial(from, count);
      }
      total += partial;
    }
    store_partial(db + k, total, count);
  });
}

void bgrad(const Conv2dProblem& problem, const Conv2dArgs& args) {
  with_element(problem.dtype, [&](auto element) {
    using T = decltype(element);
    const T* dy = static_cast<const T*>(args.a);
    T* db = static_cast<T*>(args.out);
    problem.layout == kNhwc ? nhwc(problem, dy, db) : nchw(problem, dy, db);
  });
}
PYCONV_CPU_KERNEL("conv2d.bgrad.direct", bgrad, nullptr)

}  // namespace
}  // namespace PYCONV_ISA
}  // namespace pyconv
