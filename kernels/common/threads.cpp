// parallel_for on torch's own pool, through the C functions of its stable ABI. The only file of the CPU kernels
// that needs torch: tests/native/ has them run on threads of another kind.
#include <pthread.h>
#include <torch/csrc/stable/c/shim.h>

#include <atomic>

#include "cpu.h"

namespace pyconv {

namespace {
thread_local bool inside_parallel_for = false;
// A forked child inherits the pool's locks but none of its threads, so it must not wait for them.
// DataLoader workers are such children.
std::atomic<bool> forked{false};
const int fork_hook = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });

struct Region {
  ParallelBody body;
  void* context;
  int64_t count;
  std::atomic<int64_t> next{0};
};
}  // namespace

int num_threads() {
  if (inside_parallel_for || forked.load(std::memory_order_relaxed)) return 1;
  uint32_t threads = 1;
  return torch_get_num_threads(&threads) == 0 && threads > 0 ? static_cast<int>(threads) : 1;
}

void parallel_for(int64_t count, ParallelBody body, void* context) {
  const int64_t threads = count < num_threads() ? count : num_threads();
  if (threads <= 1) {
    for (int64_t index = 0; index < count; ++index) body(context, index, 0);
    return;
  }
  Region region{body, context, count};
  // One range element per thread; each then takes indices from the shared counter until none is left.
  torch_parallel_for(
      0, threads, 1,
      [](int64_t begin, int64_t end, void* pointer) {
        Region& shared = *static_cast<Region*>(pointer);
        inside_parallel_for = true;
        for (int64_t thread = begin; thread < end; ++thread) {
          for (int64_t index; (index = shared.next.fetch_add(1, std::memory_order_relaxed)) < shared.count;)
            shared.body(shared.context, index, static_cast<int>(thread));
        }
        inside_parallel_for = false;
      },
      &region);
}

}  // namespace pyconv
