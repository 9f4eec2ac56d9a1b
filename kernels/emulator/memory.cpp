// Global memory: the buffers of a session. Shared memory: where a block's arrays lie.
#include <sys/mman.h>

#include <cstring>

#include "emulator/runtime.h"

namespace pyconv {
namespace emulator {

// ---- global memory

std::vector<Region> buffers;

extern "C" PYCONV_EXPORT void pyconv_emulator_begin(const Region* regions, int count) {
  buffers.clear();
  for (int i = 0; i < count; ++i) {
    if (!regions[i].bytes) continue;
    buffers.push_back(regions[i]);
    if (!regions[i].initialised) memset(regions[i].begin, 0xFF, regions[i].bytes);
  }
}

extern "C" PYCONV_EXPORT void pyconv_emulator_end() { buffers.clear(); }

// ---- shared memory

// Arrays lie in one arena, kGuardBytes apart.
static constexpr size_t kGuardBytes = 128, kMaxArrays = 64;
static constexpr size_t kArenaBytes = kSharedLimit + (kMaxArrays + 2) * 3 * kGuardBytes;

struct SharedArray {
  const void* key;  // its place in the source; null for dynamic shared memory
  Region region;
  uint32_t block_phase;  // of the block that has it, so that each block finds it poisoned
};

static char* arena;
static std::vector<SharedArray> arrays;
static size_t arena_used, static_bytes;

static SharedArray& add_array(const void* key, size_t bytes, size_t align, const char* name) {
  if (static_bytes + launch.dynamic_bytes > kSharedLimit || arrays.size() == kMaxArrays) {
    find("shared memory", nullptr, nullptr,
         "%zu bytes of arrays and %zu of dynamic shared memory: a block has %zu", static_bytes,
         launch.dynamic_bytes, kSharedLimit);
    abandon();
  }
  arena_used = (arena_used + align - 1) / align * align;
  arrays.push_back({key, {arena + arena_used, bytes, name, false, true}, 0});
  arena_used += bytes + kGuardBytes;
  return arrays.back();
}

bool in_shared(const void* at) { return size_t(static_cast<const char*>(at) - arena) < kArenaBytes; }

void begin_shared() {
  if (!arena) {
    arena = static_cast<char*>(
        mmap(nullptr, kArenaBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  }
  arrays.clear();
  arena_used = kGuardBytes;
  static_bytes = 0;
}

static void* give(SharedArray& array) {
  if (array.block_phase != launch.block_phase) {
    array.block_phase = launch.block_phase;
    memset(array.region.begin, 0xFF, array.region.bytes);
  }
  return array.region.begin;
}

PYCONV_EXPORT void* shared(const void* key, unsigned long bytes, unsigned long align, const char* name) {
  for (SharedArray& array : arrays) {
    if (array.key == key) return give(array);
  }
  static_bytes += bytes;
  if (static_bytes > kStaticSharedLimit) {
    find("shared memory", PYCONV_WHERE, nullptr,
         "%zu bytes of arrays up to `%s`: more than %zu must be dynamic shared memory", static_bytes, name,
         kStaticSharedLimit);
    abandon();
  }
  return give(add_array(key, bytes, align < 16 ? 16 : align, name));
}

PYCONV_EXPORT void* dynamic_shared() {
  for (SharedArray& array : arrays) {
    if (!array.key) return give(array);
  }
  return give(add_array(nullptr, launch.dynamic_bytes, 128, "dynamic shared memory"));
}

}  // namespace emulator
}  // namespace pyconv
