// Who runs next. A thread runs until it waits or exits and then switches straight to the next one: a barrier costs
// one switch for each thread. A warp runs until all its lanes are at __syncthreads or have exited (in random
// order: until each lane waits), so a warp barrier involves no other warp.
#include "emulator/runtime.h"

namespace pyconv {
namespace emulator {

Launch launch;
Thread* current = nullptr;
Thread threads[kMaxThreads];
Warp warps[kMaxWarps];
Fiber scheduler_fiber;

uint64_t next_random() {  // xorshift64*
  uint64_t& x = launch.random;
  x ^= x >> 12, x ^= x << 25, x ^= x >> 27;
  return x * 0x2545F4914F6CDD1Dull;
}

// One bit of a set that is not empty.
static int choose(uint32_t set) {
  if (launch.order == Order::kForward) return __builtin_ctz(set);
  if (launch.order == Order::kReverse) return 31 - __builtin_clz(set);
  if (launch.order == Order::kOdd) return __builtin_ctz(set & 0xaaaaaaaau ? set & 0xaaaaaaaau : set);
  const int turn = next_random() >> 59;
  const uint32_t turned = turn ? set >> turn | set << (32 - turn) : set;
  return (__builtin_ctz(turned) + turn) & 31;
}

static std::string lanes(uint32_t set) {
  std::string text;
  for (int first = 0; first < kWarp; ++first) {
    if (!(set & bit(first))) continue;
    int last = first;
    while (last + 1 < kWarp && (set & bit(last + 1))) ++last;
    text += (text.empty() ? "" : ",") + std::to_string(first);
    if (last > first) text += (last > first + 1 ? "-" : ",") + std::to_string(last);
    first = last;
  }
  return text;
}

// Lets go every group of lanes that has met at a warp barrier. A lane that has exited is not waited for.
static bool release_warp(int number) {
  Warp& warp = warps[number];
  const uint32_t waiting = warp.at_warp_barrier;
  uint32_t released = 0;
  for (uint32_t left = waiting; left;) {
    const int lane = __builtin_ctz(left);
    const uint32_t mask = warp.mask[lane], group = mask & ~warp.exited;
    bool complete = (group & ~waiting) == 0;
    for (uint32_t others = group & waiting; others; others &= others - 1) {
      complete &= warp.mask[__builtin_ctz(others)] == mask;
    }
    if (complete) {
      released |= group;
      for (uint32_t met = group; met; met &= met - 1) {
        threads[number * kWarp + __builtin_ctz(met)].participants = group;
      }
      if (launch.checked) join_clocks(number, group);
    }
    left &= ~(complete ? group : bit(lane));
  }
  warp.at_warp_barrier &= ~released;
  warp.runnable |= released;
  return released != 0;
}

// Lanes wait for each other at warp barriers, and no other thread can help them.
[[noreturn]] static void stuck(int number) {
  const Warp& warp = warps[number];
  for (uint32_t left = warp.at_warp_barrier; left; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    const uint32_t mask = warp.mask[lane], missing = mask & ~warp.exited & ~warp.at_warp_barrier;
    current = &threads[number * kWarp + lane];
    if (missing) {
      const Thread& other = threads[number * kWarp + __builtin_ctz(missing)];
      find("deadlock", current->barrier, other.barrier,
           "waits for the lanes of mask 0x%08x, but lanes %s of the warp are at __syncthreads at %%W", mask,
           lanes(missing).c_str());
    } else {
      for (uint32_t others = mask & ~warp.exited; others; others &= others - 1) {
        const int other = __builtin_ctz(others);
        if (warp.mask[other] == mask) continue;
        find("deadlock", current->barrier, threads[number * kWarp + other].barrier,
             "waits for the lanes of mask 0x%08x, but lane %d waits for those of mask 0x%08x at %%W", mask, other,
             warp.mask[other]);
        break;
      }
    }
  }
  abandon();
}

// All threads that live are at __syncthreads. False if none lives: the block is done.
static bool release_block() {
  if (launch.live == 0) return false;
  if (launch.live < launch.threads) {
    find("barrier", launch.first_barrier, nullptr,
         "__syncthreads() by %d threads of a block of %d: the others have exited", launch.live, launch.threads);
  }
  launch.first_barrier = nullptr;
  ++launch.phase;
  for (int number = 0; number < launch.warps; ++number) {
    Warp& warp = warps[number];
    warp.runnable = warp.at_block_barrier;
    warp.at_block_barrier = 0;
    if (warp.runnable) launch.ready |= bit(number);
  }
  return true;
}

// The thread to run next; null when the block is done.
static Thread* next_thread() {
  for (;;) {
    if (launch.order == Order::kRandom && launch.ready) launch.current_warp = choose(launch.ready);
    const int number = launch.current_warp;
    Warp& warp = warps[number];
    if (warp.runnable) return &threads[number * kWarp + choose(warp.runnable)];
    if (warp.at_warp_barrier) {
      if (!release_warp(number)) stuck(number);
      continue;
    }
    launch.ready &= ~bit(number);
    if (!launch.ready && !release_block()) return nullptr;
    launch.current_warp = choose(launch.ready);
  }
}

static void run_next() {
  Thread* const self = current;
  Thread* const next = next_thread();
  if (next == self) return;
  current = next;
  switch_fiber(self->fiber, next ? next->fiber : scheduler_fiber);
}

void begin_block() {
  launch.block_phase = ++launch.phase;
  launch.live = launch.threads;
  launch.first_barrier = nullptr;
  launch.ready = launch.warps == kMaxWarps ? ~0u : bit(launch.warps) - 1;
  for (int number = 0; number < launch.warps; ++number) {
    const int count = launch.threads - number * kWarp;
    const uint32_t present = count >= kWarp ? ~0u : bit(count) - 1;
    warps[number].runnable = present;
    warps[number].at_warp_barrier = warps[number].at_block_barrier = 0;
    warps[number].exited = ~present;
  }
  launch.current_warp = choose(launch.ready);
  current = next_thread();
  switch_fiber(scheduler_fiber, current->fiber);
}

void exit_thread() {
  Warp& warp = warps[current->warp];
  warp.runnable &= ~bit(current->lane);
  warp.exited |= bit(current->lane);
  --launch.live;
  run_next();
  __builtin_unreachable();
}

void abandon() {
  Thread* const self = current;
  launch.abandoned = true;
  current = nullptr;
  switch_fiber(self->fiber, scheduler_fiber);
  __builtin_unreachable();
}

void sync_block_at(int line, const void* where) {
  Thread& self = *current;
  Warp& warp = warps[self.warp];
  self.barrier = where;
  if (!launch.first_barrier) {
    launch.first_barrier = self.barrier;
    launch.first_line = line;
  }
  if (line != launch.first_line) {
    find("divergent barrier", self.barrier, nullptr,
         "__syncthreads() of line %d, while other threads of the block are at that of line %d", line,
         launch.first_line);
  } else if (self.barrier != launch.first_barrier) {
    // The compiler may have copied one barrier to two places, so whoever knows the lines has the last word.
    find("divergent barrier", self.barrier, launch.first_barrier,
         "__syncthreads() here, while other threads of the block are at the one at %%W");
  }
  warp.runnable &= ~bit(self.lane);
  warp.at_block_barrier |= bit(self.lane);
  run_next();
}

PYCONV_EXPORT void sync_block(int line) { sync_block_at(line, PYCONV_WHERE); }

void wait_for_warp(uint32_t mask, const void* where) {
  Thread& self = *current;
  Warp& warp = warps[self.warp];
  self.barrier = where;
  if (!(mask & bit(self.lane))) {
    find("warp mask", where, nullptr, "lane %d is not in its own mask 0x%08x", self.lane, mask);
    abandon();
  }
  warp.runnable &= ~bit(self.lane);
  warp.at_warp_barrier |= bit(self.lane);
  warp.mask[self.lane] = mask;
  run_next();
}

PYCONV_EXPORT void sync_warp(unsigned mask) { wait_for_warp(mask, PYCONV_WHERE); }

}  // namespace emulator
}  // namespace pyconv
