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

#include "emulator/fiber.h"
#include "emulator/findings.h"

namespace pyconv {
namespace emulator {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;
constexpr int kMaxWarps = kMaxThreads / kWarp;
constexpr size_t kMaxParameterBytes = 4096;
constexpr size_t kStackBytes = 256 * 1024;  // of a thread; pages that are never touched cost nothing

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

enum class Order : int { kForward, kReverse, kOdd, kRandom };

struct Launch {
  void (*run)(void** parameters);
  void* parameters[32];
  uint3 grid, block_extent, block_index;
  size_t dynamic_bytes;
  bool checked;
  Order order;
  uint64_t random;  // state of the generator

  int threads, warps;
  uint32_t ready;    // warps that can go on
  int current_warp;  // whose lanes are being run
  int live;          // threads of the block that have not exited
  bool abandoned;    // after a finding with which the kernel cannot go on
  int first_line;
  const void* first_barrier;  // of the threads at __syncthreads: where the first of them is

  // A phase is what lies between two block barriers; its number is never used again. Everything in one block is
  // ordered by phases, and everything before first_phase happened in an earlier launch.
  uint32_t phase, block_phase, first_phase;

  // The kernel's library, in memory: findings' places lie in it. Of a kernel that lies in none (numba.cpp): memory
  // that nobody may touch, in which a place is a number.
  const char* code;
  size_t code_bytes;
  alignas(16) char parameter_memory[kMaxParameterBytes];
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
void sync_block_at(int line, const void* where);

// launch.cpp
uint3 block_of_phase(uint32_t phase);

// checker.cpp
enum class Access { kRead, kWrite, kAtomic, kCopyIssue, kCopyDone };
void check_access(const void* at, size_t bytes, Access access, const void* where);
void join_clocks(int warp, uint32_t group);  // these lanes have met

}  // namespace emulator
}  // namespace pyconv

#define PYCONV_WHERE __builtin_return_address(0)
#define PYCONV_EXPORT __attribute__((visibility("default")))
