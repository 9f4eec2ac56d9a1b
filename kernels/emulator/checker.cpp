// The checked build: every load and store of a kernel asks here first (hooks.cpp), as do the primitives.
//
// Two accesses race if one is a write and nothing orders them. What orders them:
//   - being made by one thread;
//   - a block barrier between them: they are in different phases of the block;
//   - a warp barrier, shuffle or other warp collective in which both threads, of one warp, took part between them.
//     Each lane has a clock that ticks at each of these, and knows the clock of each other lane as of their last
//     meeting, directly or through a third lane (vector clocks);
//   - the end of a launch.
// Blocks of one launch are never ordered. Atomics do not race with each other.
#include <cstring>

#include "emulator/memory.h"
#include "emulator/runtime.h"

namespace pyconv {
namespace emulator {

struct Clocks {  // of a warp, valid in one phase; at the start of a phase all are 0
  uint32_t phase = 0;
  uint32_t known[kWarp][kWarp];  // [lane][other lane]
};
static Clocks clocks[kMaxWarps];

void join_clocks(int warp, uint32_t group) {
  Clocks& clock = clocks[warp];
  if (clock.phase != launch.phase) {
    clock.phase = launch.phase;
    memset(clock.known, 0, sizeof clock.known);
  }
  uint32_t joined[kWarp] = {};
  for (uint32_t left = group; left; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    ++clock.known[lane][lane];
    for (int other = 0; other < kWarp; ++other) joined[other] = std::max(joined[other], clock.known[lane][other]);
  }
  for (uint32_t left = group; left; left &= left - 1) {
    memcpy(clock.known[__builtin_ctz(left)], joined, sizeof joined);
  }
}

static uint32_t own_clock() {
  const Clocks& clock = clocks[current->warp];
  return clock.phase == launch.phase ? clock.known[current->lane][current->lane] : 0;
}

// Whether the access happened before what the current thread does now.
static inline bool is_before(const Stamp& stamp) {
  if (stamp.phase != launch.phase) return stamp.phase >= launch.block_phase || stamp.phase < launch.first_phase;
  const int thread = stamp.thread;
  if (thread == current->number) return true;
  if (thread / kWarp != current->warp) return false;
  const Clocks& clock = clocks[current->warp];
  return clock.phase == launch.phase && stamp.clock < clock.known[current->lane][thread % kWarp];
}

// ---- what to say

static const char* name_of(Access access) {
  switch (access) {
    case Access::kRead: return "read";
    case Access::kWrite: return "write";
    case Access::kAtomic: return "atomic access";
    default: return "cp.async write";
  }
}

static const void* place_of(const Stamp& stamp) { return launch.code + stamp.where; }

struct Now {  // the access being checked
  const Region& region;
  size_t offset, bytes;
  Access access;
  const void* where;

  std::string text() const {
    return std::string(name_of(access)) + " of " + std::to_string(bytes) + " bytes at `" + region.name + "` + " +
           std::to_string(offset);
  }
};

__attribute__((noinline, cold)) static void find_race(const Now& now, const Stamp& before, const char* did) {
  const bool other_block = before.phase < launch.block_phase;
  const char* const kind = before.in_flight && !other_block ? "cp.async" : "race";
  if (!is_new(kind, now.where, place_of(before))) return;
  std::string who = "thread " + text_of(threads[before.thread].index);
  if (other_block) who += " of block " + text_of(block_of_phase(before.phase));
  if (before.in_flight && !other_block) {
    find(kind, now.where, place_of(before), "%s: %s has not waited for the copy that it issued at %%W",
         now.text().c_str(), before.thread == unsigned(current->number) ? "the thread" : who.c_str());
  } else {
    find(kind, now.where, place_of(before), "%s, %s by %s at %%W, %s", now.text().c_str(), did, who.c_str(),
         other_block ? "and blocks of a launch have no order" : "with no barrier in between");
  }
}

__attribute__((noinline, cold)) static void find_uninitialised(const Now& now) {
  if (!is_new("uninitialised", now.where, nullptr)) return;
  find("uninitialised", now.where, nullptr, "%s, which nothing has written", now.text().c_str());
}

// ---- the check

static inline void read_cell(Cell& cell, const Stamp& mine, uint32_t first_phase, const Now& now) {
  if (cell.write.phase < first_phase) {
    if (!now.region.initialised) find_uninitialised(now);
  } else if (cell.write.in_flight || !is_before(cell.write)) {
    find_race(now, cell.write, cell.write.is_atomic ? "changed" : "written");
  }
  // A reader that was before me need not be kept: what races with it races with me too. Of three with no order, two
  // of different warps are kept: no writer can be ordered after both but be of a block barrier later.
  if (cell.read.phase < first_phase || is_before(cell.read)) {
    cell.read = mine;
  } else if (cell.other_read.phase < first_phase || is_before(cell.other_read) ||
             cell.other_read.thread / kWarp == cell.read.thread / kWarp) {
    cell.other_read = mine;
  }
}

static inline void write_cell(Cell& cell, const Stamp& mine, uint32_t first_phase, const Now& now) {
  if (cell.write.phase >= first_phase && !(cell.write.is_atomic && mine.is_atomic)) {
    if (cell.write.in_flight || !is_before(cell.write)) find_race(now, cell.write, "written");
  } else if (mine.is_atomic && !cell.write.is_atomic && !now.region.initialised) {
    find_uninitialised(now);
  }
  if (cell.read.phase >= first_phase && !is_before(cell.read)) find_race(now, cell.read, "read");
  if (cell.other_read.phase >= first_phase && !is_before(cell.other_read)) find_race(now, cell.other_read, "read");
  cell.write = mine;
  cell.read.phase = cell.other_read.phase = 0;
}

static inline void check_cells(Region& region, const char* at, size_t bytes, Access access, uint32_t first_phase,
                               const void* where) {
  const size_t offset = size_t(at - region.begin);
  const Now now{region, offset, bytes, access, where};
  Stamp mine;
  mine.phase = launch.phase;
  mine.thread = unsigned(current->number);
  mine.clock = own_clock();
  mine.is_atomic = access == Access::kAtomic;
  mine.in_flight = access == Access::kCopyIssue;
  mine.where = uint32_t(static_cast<const char*>(where) - launch.code);
  size_t count;
  Cell* cell = region.shadow.cells(offset, bytes, count);
  if (access == Access::kRead) {
    for (; count; --count) read_cell(*cell++, mine, first_phase, now);
  } else if (access == Access::kCopyDone) {
    for (; count; --count) (cell++)->write = mine;
  } else {
    for (; count; --count) write_cell(*cell++, mine, first_phase, now);
  }
}

// ---- accesses that no kernel may make

[[noreturn]] __attribute__((noinline, cold)) static void find_outside(const char* at, size_t bytes, Access access,
                                                                      const void* where) {
  const Region* nearest = nullptr;
  size_t least = ~size_t(0);
  const auto consider = [&](const Region& region) {
    const size_t distance = at < region.begin ? size_t(region.begin - at) : size_t(at - region.begin);
    const size_t gap = at < region.begin ? distance : distance < region.bytes ? 0 : distance - region.bytes;
    if (gap < least) least = gap, nearest = &region;
  };
  if (shared_memory.holds(at)) {
    for (size_t i = 0; i < shared_memory.count; ++i) consider(shared_memory.arrays[i].region);
  } else {
    for (size_t i = 0; i < session.count; ++i) consider(session.buffers[i]);
  }
  if (nearest) {
    find("out of bounds", where, nullptr, "%s of %zu bytes at `%s` %+td, which has %zu bytes", name_of(access),
         bytes, nearest->name, at - nearest->begin, nearest->bytes);
  } else {
    find("out of bounds", where, nullptr, "%s of %zu bytes at %p, where the kernel has no memory", name_of(access),
         bytes, static_cast<const void*>(at));
  }
  abandon();
}

// What the emulator itself puts before a kernel: parameters, values of a warp collective, constants of the code.
static bool is_own_memory(const char* at, Access access) {
  if (access != Access::kRead) return false;
  const auto in = [at](const void* begin, size_t bytes) {
    return size_t(at - static_cast<const char*>(begin)) < bytes;
  };
  return in(&launch, sizeof launch) || in(threads, sizeof threads) || in(launch.code, launch.code_bytes);
}

void check_access(const void* pointer, size_t bytes, Access access, const void* where) {
  const char* const at = static_cast<const char*>(pointer);
  if (size_t(at - current->stack) < kStackBytes) return;  // a local variable
  if (shared_memory.holds(at)) {
    Region* const array = shared_memory.find(at, bytes);
    if (!array) find_outside(at, bytes, access, where);
    check_cells(*array, at, bytes, access, launch.block_phase, where);
    return;
  }
  Region* const buffer = session.find(at, bytes);
  if (!buffer) {
    if (is_own_memory(at, access)) return;
    find_outside(at, bytes, access, where);
  }
  if (!buffer->writable && access != Access::kRead) {
    find("read-only", where, nullptr, "%s of %zu bytes at `%s` + %td", name_of(access), bytes, buffer->name,
         at - buffer->begin);
    abandon();
  }
  check_cells(*buffer, at, bytes, access, session.first_phase, where);
}

}  // namespace emulator
}  // namespace pyconv
