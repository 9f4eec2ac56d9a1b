// What threads do together or for later: warp collectives, cp.async, atomics.
#include <cstring>

#include "emulator/memory.h"
#include "emulator/runtime.h"

namespace pyconv {
namespace emulator {

// ---- warp collectives

PYCONV_EXPORT void publish(const void* value, int bytes, unsigned mask) {
  Thread& self = *current;
  self.reading = mask == kFullMask ? int(self.collectives++ & 1) : 2;
  memcpy(self.slot[self.reading], value, bytes);
  wait_for_warp(mask, PYCONV_WHERE);
}

PYCONV_EXPORT const void* published(int lane) {
  const Thread& self = *current;
  if (unsigned(lane) >= unsigned(kWarp) || !(self.participants & bit(lane))) {
    find("warp mask", PYCONV_WHERE, nullptr, "reads lane %d, which takes no part in this collective", lane);
    abandon();
  }
  return threads[self.warp * kWarp + lane].slot[self.reading];
}

PYCONV_EXPORT void finish_reading(unsigned mask) {
  if (mask != kFullMask) wait_for_warp(mask, PYCONV_WHERE);
}

PYCONV_EXPORT unsigned ballot(unsigned mask, bool vote) {
  Thread& self = *current;
  self.reading = mask == kFullMask ? int(self.collectives++ & 1) : 2;
  self.slot[self.reading][0] = vote;
  wait_for_warp(mask, PYCONV_WHERE);
  unsigned votes = 0;
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!(self.participants & bit(lane))) continue;
    if (threads[self.warp * kWarp + lane].slot[self.reading][0]) votes |= bit(lane);
  }
  if (mask != kFullMask) wait_for_warp(mask, PYCONV_WHERE);
  return votes;
}

// ---- cp.async: the destination is 0xFF from issue to wait, so a wait that is missing or too weak shows in the
// values

PYCONV_EXPORT void cp_async(void* to, const void* from, int bytes, int valid_bytes) {
  const void* const where = PYCONV_WHERE;
  if (!(bytes == 4 || bytes == 8 || bytes == 16) || valid_bytes < 0 || valid_bytes > bytes) {
    find("cp.async", where, nullptr, "copies 4, 8 or 16 bytes, of which 0 to all are valid; here %d and %d", bytes,
         valid_bytes);
    abandon();
  }
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) & (bytes - 1)) {
    find("misaligned", where, nullptr, "cp.async of %d bytes from %p to %p: both must be aligned to %d", bytes,
         from, to, bytes);
    abandon();
  }
  if (!shared_memory.holds(to)) {
    find("cp.async", where, nullptr, "the destination %p is not in shared memory", to);
    abandon();
  }
  if (launch.checked) {
    if (valid_bytes) check_access(from, valid_bytes, Access::kRead, where);
    check_access(to, bytes, Access::kCopyIssue, where);
  }
  memset(to, 0xFF, bytes);
  current->copies.push_back({to, from, bytes, valid_bytes, current->groups, where});
}

PYCONV_EXPORT void cp_async_commit() { ++current->groups; }

PYCONV_EXPORT void cp_async_wait(int groups) {
  std::vector<Copy>& copies = current->copies;
  size_t done = 0;
  for (; done < copies.size(); ++done) {
    const Copy& copy = copies[done];
    if (copy.group + unsigned(groups) >= current->groups) break;  // one of the newest groups, or not committed
    memcpy(copy.to, copy.from, copy.valid_bytes);
    memset(static_cast<char*>(copy.to) + copy.valid_bytes, 0, copy.bytes - copy.valid_bytes);
    if (launch.checked) check_access(copy.to, copy.bytes, Access::kCopyDone, copy.where);
  }
  copies.erase(copies.begin(), copies.begin() + done);
}

// ---- atomics

template <class T>
static T play(Atomic operation, T* at, T value, T expected) {
  const T before = *at;
  switch (operation) {
    case Atomic::kAdd: *at = before + value; break;
    case Atomic::kMin: *at = value < before ? value : before; break;
    case Atomic::kMax: *at = before < value ? value : before; break;
    case Atomic::kAnd: *at = before & value; break;
    case Atomic::kOr: *at = before | value; break;
    case Atomic::kExchange: *at = value; break;
    case Atomic::kCompareAndSwap: *at = before == expected ? value : before; break;
  }
  return before;
}

PYCONV_EXPORT unsigned long long atomic(Atomic operation, void* at, int bytes, bool is_signed,
                                        unsigned long long value, unsigned long long expected) {
  check_aligned(at, bytes);
  if (launch.checked) check_access(at, bytes, Access::kAtomic, PYCONV_WHERE);
  if (bytes == 8 && is_signed) return play<int64_t>(operation, static_cast<int64_t*>(at), value, expected);
  if (bytes == 8) return play<uint64_t>(operation, static_cast<uint64_t*>(at), value, expected);
  if (is_signed) return play<int32_t>(operation, static_cast<int32_t*>(at), value, expected);
  return play<uint32_t>(operation, static_cast<uint32_t*>(at), value, expected);
}

// ---- checks that primitives ask for

PYCONV_EXPORT void touch(const void* at, int bytes, bool is_write) {
  if (launch.checked) check_access(at, bytes, is_write ? Access::kWrite : Access::kRead, PYCONV_WHERE);
}

PYCONV_EXPORT void misaligned(const void* at, int bytes) {
  find("misaligned", PYCONV_WHERE, nullptr, "an access of %d bytes at %p, which is not aligned to them", bytes,
       at);
  abandon();
}

PYCONV_EXPORT void fail(const char* message) {
  find("failed", PYCONV_WHERE, nullptr, "%s", message);
  abandon();
}

}  // namespace emulator
}  // namespace pyconv
