#include "emulator/memory.h"

#include <sys/mman.h>

#include <cstring>

#include "emulator/runtime.h"

namespace pyconv {
namespace emulator {

Session session;
SharedMemory shared_memory;

// ---- global memory

// What Python gives; pyconv/backends/emulator.py has its twin.
struct Buffer {
  char* pointer;
  size_t bytes;
  const char* name;
  bool initialised, writable;
};

// Memory for copies of the buffers, with room between them.
static constexpr size_t kGap = 64 * 1024, kAlignment = 256;  // as cudaMalloc aligns

static char* copies(size_t bytes) {
  static char* memory = nullptr;
  static size_t capacity = 0;
  if (bytes > capacity) {
    if (memory) munmap(memory, capacity);
    capacity = bytes * 2;
    memory = static_cast<char*>(
        mmap(nullptr, capacity, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  }
  return memory;
}

static size_t room_of(size_t bytes) { return (bytes + kGap + kAlignment - 1) / kAlignment * kAlignment; }

extern "C" PYCONV_EXPORT void pyconv_emulator_begin(const Buffer* buffers, int count, bool checked) {
  session.first_phase = ++launch.phase;
  session.count = session.recent = 0;
  size_t total = kGap;
  for (int i = 0; i < count; ++i) total += room_of(buffers[i].bytes);
  char* place = checked ? copies(total) + kGap : nullptr;
  for (int i = 0; i < count; ++i) {
    const Buffer& buffer = buffers[i];
    if (!buffer.bytes) continue;
    if (session.buffers.size() == session.count) session.buffers.emplace_back();
    Region& region = session.buffers[session.count++];
    region.begin = checked ? place : buffer.pointer;
    region.caller_begin = buffer.pointer, region.bytes = buffer.bytes, region.name = buffer.name;
    region.initialised = buffer.initialised, region.writable = buffer.writable;
    region.shadow.begin(buffer.bytes);
    if (!buffer.initialised) {
      memset(region.begin, 0xFF, buffer.bytes);
    } else if (checked) {
      memcpy(region.begin, buffer.pointer, buffer.bytes);
    }
    place += room_of(buffer.bytes);
  }
}

extern "C" PYCONV_EXPORT void pyconv_emulator_end() {
  for (size_t i = 0; i < session.count; ++i) {
    Region& region = session.buffers[i];
    if (region.bytes > 4 << 20) region.shadow.forget();  // which is many times larger
    if (region.writable && region.begin != region.caller_begin) {
      memcpy(region.caller_begin, region.begin, region.bytes);
    }
  }
  session.count = 0;
  // Phases are 32 bits: before they could come round, all shadow memory is cleared and they start anew.
  if (launch.phase < 1u << 30) return;
  for (Region& region : session.buffers) region.shadow.forget();
  for (SharedArray& array : shared_memory.arrays) array.region.shadow.forget();
  launch.phase = 0;
}

// ---- shared memory

void begin_shared() {
  SharedMemory& memory = shared_memory;
  if (!memory.arena) {
    memory.arena = static_cast<char*>(
        mmap(nullptr, kArenaBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  }
  memset(memory.array_at, 0, (memory.used + kPlace - 1) / kPlace);
  memory.count = memory.static_bytes = 0;
  memory.used = kGuardBytes;
}

static SharedArray& add_array(const void* key, size_t bytes, size_t align, const char* name) {
  SharedMemory& memory = shared_memory;
  if (memory.static_bytes + launch.dynamic_bytes > kSharedLimit || memory.count == kMaxArrays) {
    find("shared memory", nullptr, nullptr, "%zu bytes of arrays and %zu bytes dynamic: a block has %zu",
         memory.static_bytes, launch.dynamic_bytes, kSharedLimit);
    abandon();
  }
  // At least kPlace apart, and aligned to no more than the array asks for: a vector access that happens to be
  // aligned with one compiler's placement is found misaligned here.
  const size_t place = (memory.used + kPlace - 1) / kPlace * kPlace + (align < kPlace ? align : 0);
  SharedArray& array = memory.arrays[memory.count++];
  Region& region = array.region;
  array.key = key, array.block_phase = 0;
  region.begin = memory.arena + place, region.bytes = bytes, region.name = name;
  region.initialised = false, region.writable = true;
  region.shadow.begin(bytes);
  memset(&memory.array_at[place / kPlace], int(memory.count), (place + bytes - 1) / kPlace - place / kPlace + 1);
  memory.used = place + bytes + kGuardBytes;
  return array;
}

static void* give(SharedArray& array) {
  if (array.block_phase != launch.block_phase) {
    array.block_phase = launch.block_phase;
    memset(array.region.begin, 0xFF, array.region.bytes);
  }
  return array.region.begin;
}

static SharedArray* array_of(const void* key) {
  for (size_t i = 0; i < shared_memory.count; ++i) {
    if (shared_memory.arrays[i].key == key) return &shared_memory.arrays[i];
  }
  return nullptr;
}

PYCONV_EXPORT void* shared(const void* key, unsigned long bytes, unsigned long align, const char* name) {
  if (SharedArray* array = array_of(key)) return give(*array);
  shared_memory.static_bytes += bytes;
  if (shared_memory.static_bytes > kStaticSharedLimit) {
    find("shared memory", PYCONV_WHERE, nullptr,
         "%zu bytes of arrays up to `%s`: more than %zu must be dynamic shared memory", shared_memory.static_bytes,
         name, kStaticSharedLimit);
    abandon();
  }
  return give(add_array(key, bytes, align, name));
}

PYCONV_EXPORT void* dynamic_shared() {
  if (SharedArray* array = array_of(nullptr)) return give(*array);
  return give(add_array(nullptr, launch.dynamic_bytes, 128, "dynamic shared memory"));
}

}  // namespace emulator
}  // namespace pyconv
