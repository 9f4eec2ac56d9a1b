// Inside the runtime library: the state of the launch in progress, shared by its files.
//
//   launch.cpp     a launch: blocks, threads, their stacks, faults            scheduler.cpp  who runs next;
//   barriers collective.cpp warp collectives, cp.async, atomics                        memory.cpp     buffers,
//   shared memory checker.cpp    shadow memory and the hooks of the checked build           findings.cpp   what
//   was found
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#define PYCONV_EMULATOR_RUNTIME
#include "emulator/emulate.h"
#include "emulator/fiber.h"

namespace pyconv {
namespace emulator {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;
constexpr int kMaxWarps = kMaxThreads / kWarp;
constexpr size_t kStaticSharedLimit = 48 * 1024;  // more is a compile error in nvcc
constexpr size_t kSharedLimit = 227 * 1024;       // of a block: sm_90; sm_80 has 163 KB, sm_86 and sm_89 99 KB
constexpr size_t kStackBytes = 256 * 1024;        // of a thread; pages that are never touched cost nothing

// A cp.async that was issued and not waited for.
struct Copy {
  void* to;
  const void* from;
  int bytes, valid_bytes;
  unsigned group;
  const void* where;
};

struct Thread {
  Fiber fiber;
  uint3 index;
  int number, lane, warp;
  char* stack;
  const void* barrier;       // where it waits, in the code
  unsigned collectives = 0;  // with the full mask, so far
  unsigned groups = 0;       // of cp.async, committed so far
  std::vector<Copy> copies;  // pending, oldest first
  // What this lane publishes to its warp. Full-mask collectives take turns between two slots: no lane can be two
  // ahead of another, so none overwrites what another has yet to read. Other masks use the third, and wait twice.
  alignas(64) char slot[3][64];
  int reading = 0;        // the slot of the collective it is in
  uint32_t participants;  // lanes that met at the last warp barrier
};

// Lanes of a warp as bit sets. `exited` includes those that the block does not have.
struct Warp {
  uint32_t runnable, at_warp_barrier, at_block_barrier, exited;
  uint32_t mask[kWarp];  // that a lane at a warp barrier waits for
};

enum class Order : int { kForward, kReverse, kRandom };

struct Launch {
  void (*run)(void** parameters);
  void** parameters;
  uint3 grid, block_extent, block_index;
  size_t dynamic_bytes;
  bool checked;
  Order order;
  uint64_t random;  // state of the generator

  int threads, warps;
  uint32_t ready;             // warps that can go on
  int current_warp;           // whose lanes are being run
  int live;                   // threads of the block that have not exited
  bool abandoned;             // after a finding with which the kernel cannot go on
  const void* first_barrier;  // of the threads at __syncthreads: where the first of them is

  // A phase is what lies between two block barriers; its number is never used again. Everything in one block is
  // ordered by phases, and everything before first_phase happened in an earlier launch.
  uint32_t phase, block_phase, first_phase;
};

extern Launch launch;
extern Thread* current;  // null between launches
extern Thread threads[kMaxThreads];
extern Warp warps[kMaxWarps];
extern Fiber scheduler_fiber;  // where a launch was called

inline uint32_t bit(int lane) { return uint32_t(1) << lane; }
uint64_t next_random();

// scheduler.cpp
void begin_block();
[[noreturn]] void exit_thread();
[[noreturn]] void abandon();  // gives the launch up, from any fiber
void wait_for_warp(uint32_t mask, const void* where);

// memory.cpp
struct Region {  // of global memory, or a shared array
  char* begin;
  size_t bytes;
  const char* name;
  bool initialised, writable;
};
void begin_shared();  // for a launch
bool in_shared(const void* at);

// checker.cpp
enum class Access { kRead, kWrite, kAtomic, kCopyIssue, kCopyDone };
void check_access(const void* at, size_t bytes, Access access, const void* where);
void join_clocks(int warp, uint32_t group);  // these lanes have met

// findings.cpp. `where` and `other` are addresses in the kernel's code, or null; in `message`, %W stands for
// `other`. A finding is kept once for each place.
void find(const char* kind, const void* where, const void* other, const char* format, ...)
    __attribute__((format(printf, 4, 5)));
void find_in_launch(const char* kind, const std::string& message);  // of no thread
extern "C" void pyconv_emulator_forget_findings();
extern "C" int pyconv_emulator_findings_count();

}  // namespace emulator
}  // namespace pyconv

#define PYCONV_WHERE __builtin_return_address(0)
#define PYCONV_EXPORT __attribute__((visibility("default")))
