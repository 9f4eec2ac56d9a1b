// A launch: blocks one after the other, each thread of a block on a stack of its own.
#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "emulator/faults.h"
#include "emulator/memory.h"
#include "emulator/runtime.h"

namespace pyconv {
namespace emulator {

PYCONV_EXPORT uint3 thread_index() noexcept { return current->index; }
PYCONV_EXPORT uint3 block_index() noexcept { return launch.block_index; }
PYCONV_EXPORT uint3 block_extent() noexcept { return launch.block_extent; }
PYCONV_EXPORT uint3 grid_extent() noexcept { return launch.grid; }
PYCONV_EXPORT int lane() noexcept { return current->lane; }

static void thread_main() {
  launch.run(launch.parameters);
  if (!current->copies.empty()) {
    find("cp.async", current->copies[0].where, nullptr, "the thread exits, and this copy was never waited for");
  }
  exit_thread();
}

// Stacks of the first `count` threads, each above a page that faults.
static void provide_stacks(int count) {
  static char* stacks = nullptr;
  static int provided = 0;
  if (!stacks) {
    stacks = static_cast<char*>(mmap(nullptr, kMaxThreads * kStackBytes, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  }
  for (; provided < count; ++provided) {
    threads[provided].stack = stacks + provided * kStackBytes;
    mprotect(threads[provided].stack, sysconf(_SC_PAGESIZE), PROT_NONE);
  }
}

static uint3 block_of_number(uint64_t number) {
  const uint64_t x = launch.grid.x, y = launch.grid.y;
  return {unsigned(number % x), unsigned(number / x % y), unsigned(number / (x * y))};
}

// Of the checked build: the blocks of the launch so far, by the phase in which each began.
static std::vector<std::pair<uint32_t, uint64_t>> begun;

uint3 block_of_phase(uint32_t phase) {
  const auto after = std::upper_bound(begun.begin(), begun.end(), std::pair(phase, ~uint64_t(0)));
  return block_of_number(std::prev(after)->second);
}

static void run_block(uint64_t number) {
  launch.block_index = block_of_number(number);
  if (launch.checked) begun.push_back({launch.phase + 1, number});
  for (int i = 0; i < launch.threads; ++i) {
    Thread& thread = threads[i];
    thread.collectives = thread.groups = 0;
    thread.copies.clear();
    // Stack tops are one cache line apart modulo a page: at the same place they would fight for one set of the
    // cache.
    prepare(thread.fiber, thread.stack, kStackBytes - i % 64 * 64, thread_main);
  }
  begin_block();
}

// Blocks in order: forward, reverse, those of odd number first, or number -> a*number + b modulo their count, with
// `a` prime to it.
static void run_blocks() {
  const uint64_t count = uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z;
  uint64_t a = 1, b = 0;
  if (launch.order == Order::kRandom) {
    do a = next_random() % count + 1;
    while (std::gcd(a, count) != 1);
    b = next_random() % count;
  }
  const auto number = [&](uint64_t i) -> uint64_t {
    if (launch.order == Order::kReverse) return count - 1 - i;
    if (launch.order == Order::kOdd) return i < count / 2 ? 2 * i + 1 : 2 * (i - count / 2);
    return uint64_t((__uint128_t(a) * i + b) % count);
  };
  for (uint64_t i = 0; i < count && !launch.abandoned; ++i) run_block(number(i));
}

// What Python gives; pyconv/backends/emulator.py has its twin.
struct Request {
  void (*run)(void** parameters);
  void** parameters;
  uint32_t grid[3], block[3];
  uint64_t dynamic_bytes;
  int32_t checked, order;
  uint64_t seed;
  const Signature* signature;
};

static bool fits(const Request& request) {
  const auto& [gx, gy, gz] = request.grid;
  const auto& [bx, by, bz] = request.block;
  if (!bx || !by || !bz || bz > 64 || uint64_t(bx) * by * bz > kMaxThreads) {
    find("launch", nullptr, nullptr, "block (%u,%u,%u): it has 1 to 1024 threads, at most 64 along z", bx, by, bz);
  } else if (!gx || !gy || !gz || gx > 0x7fffffffu || gy > 65535 || gz > 65535) {
    find("launch", nullptr, nullptr, "grid (%u,%u,%u): it has 1 to 2147483647, 65535 and 65535 blocks", gx, gy,
         gz);
  } else if (request.dynamic_bytes > kSharedLimit) {
    find("shared memory", nullptr, nullptr, "%zu bytes dynamic: a block has %zu", size_t(request.dynamic_bytes),
         kSharedLimit);
  } else {
    return true;
  }
  return false;
}

// Where the library that holds `run` lies in memory, or what stands for it.
static void find_code(const void* run) {
  static const void* found = nullptr;
  if (run == found) return;
  found = run;
  const auto look = [](dl_phdr_info* info, size_t, void* address) {
    size_t bytes = 0;
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      const auto& segment = info->dlpi_phdr[i];
      if (segment.p_type == PT_LOAD) bytes = std::max<size_t>(bytes, segment.p_vaddr + segment.p_memsz);
    }
    const size_t offset = reinterpret_cast<uintptr_t>(address) - info->dlpi_addr;
    if (offset >= bytes) return 0;
    launch.code = reinterpret_cast<const char*>(info->dlpi_addr);
    launch.code_bytes = bytes;
    return 1;
  };
  if (dl_iterate_phdr(look, const_cast<void*>(run))) return;
  constexpr size_t kPlaces = size_t(1) << 28;
  static void* const places =
      mmap(nullptr, kPlaces, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  launch.code = static_cast<const char*>(places);
  launch.code_bytes = kPlaces;
}

// A copy of the parameters, as a GPU has in constant memory, with pointers to the buffers that kernels are to use. A
// word that happens to look like one of these addresses is replaced too: they are far from any size or number.
static bool take_parameters(const Request& request) {
  size_t used = 0;
  for (int i = 0; i < request.signature->count; ++i) {
    const size_t bytes = request.signature->bytes[i], place = (used + 15) / 16 * 16;
    if (place + bytes > sizeof launch.parameter_memory) {
      find("launch", nullptr, nullptr, "the parameters have more than 4096 bytes");
      return false;
    }
    launch.parameters[i] = launch.parameter_memory + place;
    memcpy(launch.parameters[i], request.parameters[i], bytes);
    for (size_t word = place; word + sizeof(char*) <= place + bytes; word += sizeof(char*)) {
      session.relocate(*reinterpret_cast<char**>(launch.parameter_memory + word));
    }
    used = place + bytes;
  }
  return true;
}

extern "C" PYCONV_EXPORT int pyconv_emulator_launch(const Request& request) {
  forget_findings();
  if (!fits(request) || !take_parameters(request)) return 1;
  launch.run = request.run;
  find_code(reinterpret_cast<const void*>(request.run));
  launch.grid = {request.grid[0], request.grid[1], request.grid[2]};
  launch.block_extent = {request.block[0], request.block[1], request.block[2]};
  launch.dynamic_bytes = request.dynamic_bytes;
  launch.checked = request.checked;
  launch.order = Order(request.order);
  launch.random = (request.seed + 1) * 0x9E3779B97F4A7C15ull | 1;
  launch.threads = int(request.block[0] * request.block[1] * request.block[2]);
  launch.warps = (launch.threads + kWarp - 1) / kWarp;
  launch.abandoned = false;
  launch.first_phase = launch.phase + 1;
  provide_stacks(launch.threads);
  for (int i = 0; i < launch.threads; ++i) {
    Thread& thread = threads[i];
    thread.number = i, thread.lane = i % kWarp, thread.warp = i / kWarp;
    const unsigned x = launch.block_extent.x, y = launch.block_extent.y;
    thread.index = {i % x, i / x % y, i / (x * y)};
  }
  begin_shared();
  begun.clear();
  install_fault_handlers();
  if (!sigsetjmp(after_fault, 1)) run_blocks();
  restore_fault_handlers();
  current = nullptr;
  return findings_count();
}

}  // namespace emulator
}  // namespace pyconv
