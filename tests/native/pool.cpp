// kernels/common/threads.cpp on std::thread in place of torch's pool, for ThreadSanitizer: many loops, of few and of
// many indices, each of which must be run once, by one thread, with its writes seen when the loop is over.
#include <torch/csrc/stable/c/shim.h>

#include <cstdio>
#include <thread>
#include <vector>

#include "common/cpu.h"

namespace {
uint32_t threads = 4;
}  // namespace

// The two functions of torch's that it calls.
extern "C" {
AOTITorchError torch_get_num_threads(uint32_t* out) {
  *out = threads;
  return 0;
}
AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t, ParallelFunc run, void* context) {
  std::vector<std::thread> pool;
  for (int64_t i = begin + 1; i < end; ++i) pool.emplace_back(run, i, i + 1, context);
  run(begin, begin + 1, context);  // the caller works too
  for (std::thread& thread : pool) thread.join();
  return 0;
}
}

int main() {
  for (int64_t count : {0, 1, 2, 3, 4, 5, 7, 64, 5000}) {
    for (threads = 1; threads <= 8; ++threads) {
      std::vector<int> runs(count), of_thread(threads), nested(count);
      pyconv::parallel_for(count, [&](int64_t index, int thread) {
        ++runs[index], ++of_thread[thread];  // a thread's number is its own for the whole loop
        pyconv::parallel_for(3, [&](int64_t, int inner) { nested[index] += inner == 0; });
        if (pyconv::num_threads() != 1) nested[index] = -1;
      });
      int64_t sum = 0;
      for (int of_one : of_thread) sum += of_one;
      for (int64_t index = 0; index < count; ++index) {
        if (runs[index] == 1 && sum == count && (nested[index] == 3 || count == 1 || threads == 1)) continue;
        std::fprintf(stderr, "index %lld of %lld on %u threads: %d runs, %d nested\n", (long long)index,
                     (long long)count, threads, runs[index], nested[index]);
        return 1;
      }
      if (pyconv::num_threads() != int(threads)) return 2;
    }
  }
  std::puts("every index once");
  return 0;
}
