// The memory that a kernel may touch: the buffers of a session and the shared arrays of a block.
#pragma once
#include "emulator/shadow.h"

namespace pyconv {
namespace emulator {

struct Region {
  char* begin;
  size_t bytes;
  char* caller_begin;  // of a buffer: where the caller has it
  const char* name;
  bool initialised, writable;
  Shadow shadow;

  bool holds(const char* at, size_t count) const {
    const size_t offset = size_t(at - begin);
    return offset < bytes && count <= bytes - offset;
  }
};

// ---- global memory: what a launch may touch, to the byte
//
// In a checked session, kernels work on copies of the buffers that lie far apart, so that an index which leaves one
// of them does not end in another; what may be written is copied back at the end.

struct Session {
  std::vector<Region> buffers;  // the first `count` are in use; the others keep their shadow memory for the next
  size_t count = 0, recent = 0;
  uint32_t first_phase = 1;  // what is older happened before the session

  // The buffer that holds all of the access, or null.
  Region* find(const char* at, size_t bytes) {
    if (recent < count && buffers[recent].holds(at, bytes)) return &buffers[recent];
    for (size_t i = 0; i < count; ++i) {
      if (buffers[i].holds(at, bytes)) return recent = i, &buffers[i];
    }
    return nullptr;
  }

  // Replaces a pointer into the caller's buffers by one into what kernels use.
  void relocate(char*& pointer) const {
    for (size_t i = 0; i < count; ++i) {
      const size_t offset = size_t(pointer - buffers[i].caller_begin);
      if (offset < buffers[i].bytes) return void(pointer = buffers[i].begin + offset);
    }
  }
};
extern Session session;

// ---- shared memory: one arena, in which arrays lie far enough apart that a wrong index rarely meets another one

constexpr size_t kStaticSharedLimit = 48 * 1024;  // more is a compile error in nvcc
constexpr size_t kSharedLimit = 227 * 1024;       // of a block: sm_90; sm_80 has 163 KB, sm_86 and sm_89 99 KB
constexpr size_t kGuardBytes = 16 * 1024, kMaxArrays = 64, kPlace = 128;
constexpr size_t kArenaBytes = kSharedLimit + (kMaxArrays + 1) * (kGuardBytes + kPlace);

struct SharedArray {
  const void* key;  // its place in the source; null for dynamic shared memory
  Region region;
  uint32_t block_phase;  // of the block that has it, so that each block finds it poisoned
};

struct SharedMemory {
  char* arena = nullptr;
  SharedArray arrays[kMaxArrays];
  size_t count = 0;
  uint8_t array_at[kArenaBytes / kPlace];  // number of the array that lies here, plus one
  size_t used = 0, static_bytes = 0;

  bool holds(const void* at) const { return size_t(static_cast<const char*>(at) - arena) < kArenaBytes; }
  // The array that holds all of the access, or null.
  Region* find(const char* at, size_t bytes) {
    const int number = array_at[size_t(at - arena) / kPlace];
    if (!number || !arrays[number - 1].region.holds(at, bytes)) return nullptr;
    return &arrays[number - 1].region;
  }
};
extern SharedMemory shared_memory;

void begin_shared();  // for a launch

}  // namespace emulator
}  // namespace pyconv
