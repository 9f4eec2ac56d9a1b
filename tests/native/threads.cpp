// parallel_for as kernels/common/cpu.h promises it, at its worst: neighbouring indices on different threads, which
// share nothing but the start and the end, in whatever order is asked for.
//
// In kernels/common/threads.cpp a thread takes the next index when it is done with its last, so on a small problem
// one thread may take them all, and ThreadSanitizer would see no race. Here the index at place i of the order is
// thread i % threads's, always.
#include "threads.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <thread>

#include "common/cpu.h"

namespace pyconv {

Schedule schedule;

namespace {
thread_local bool inside_parallel_for = false;

std::vector<int64_t> indices_in_order(int64_t count, int64_t order) {
  std::vector<int64_t> indices(count);
  std::iota(indices.begin(), indices.end(), 0);
  if (order == kReverse) std::reverse(indices.begin(), indices.end());
  if (order >= kShuffled) std::shuffle(indices.begin(), indices.end(), std::mt19937_64(order));
  return indices;
}
}  // namespace

int num_threads() { return inside_parallel_for ? 1 : static_cast<int>(schedule.threads); }

void parallel_for(int64_t count, ParallelBody body, void* context) {
  if (inside_parallel_for) {
    std::fputs("a parallel_for inside a parallel_for: never nest (kernels/common/cpu.h)\n", stderr);
    std::abort();
  }
  schedule.counts.push_back(count);
  const std::vector<int64_t> indices = indices_in_order(count, schedule.order);
  const int64_t threads = std::min(count, schedule.threads);
  const auto run = [&](int64_t thread) {
    inside_parallel_for = true;
    for (int64_t place = thread; place < count; place += threads) body(context, indices[place], int(thread));
    inside_parallel_for = false;
  };
  if (threads <= 1) {
    if (threads == 1) run(0);
    return;
  }
  std::vector<std::thread> pool;
  for (int64_t thread = 0; thread < threads; ++thread) pool.emplace_back(run, thread);
  for (std::thread& thread : pool) thread.join();
}

}  // namespace pyconv
