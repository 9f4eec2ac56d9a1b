// Shadow memory: for each granule of a region, who wrote it last and who has read it since. A granule is as large as
// the accesses allow: the first access sets its size, and one that does not fit makes it smaller.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace pyconv {
namespace emulator {

// One access, in 12 bytes. Stamps of phase 0, or of a phase before the region existed, mean "never": shadow memory
// is reused without being cleared.
struct Stamp {
  uint32_t phase;
  uint32_t thread : 10, clock : 20, is_atomic : 1, in_flight : 1;
  uint32_t where;  // in the kernel's code, relative to its start
};

// Two readers are enough to find every race with a later write: whoever writes conflicts with one of them, if it
// conflicts with any reader (checker.cpp says how they are chosen).
struct Cell {
  Stamp write, read, other_read;
};

class Shadow {
 public:
  // Starts a region of this size with no accesses.
  void begin(size_t bytes) {
    bytes_ = bytes;
    shift_ = kUnset;
  }

  // The first cell of an access; `count` are concerned.
  Cell* cells(size_t offset, size_t bytes, size_t& count) {
    const size_t unfit = (offset | bytes) & ((size_t(1) << shift_) - 1);
    if (__builtin_expect(unfit != 0, 0)) refine(offset | bytes);
    count = bytes >> shift_;
    return &cells_[offset >> shift_];
  }
  size_t granule() const { return size_t(1) << shift_; }

  void forget() { cells_ = std::vector<Cell>(); }

 private:
  static constexpr int kLargest = 4, kUnset = 30;  // 16 bytes; not set yet

  void refine(size_t offset_and_bytes) {
    const int shift = std::min(__builtin_ctzll(offset_and_bytes), kLargest);
    const size_t after = (bytes_ + (size_t(1) << shift) - 1) >> shift;
    const bool is_first = shift_ == kUnset;
    const int smaller = shift_ - shift;
    if (cells_.size() < after) cells_.resize(after);
    if (!is_first) {
      for (size_t i = after; i-- > 0;) cells_[i] = cells_[i >> smaller];
    }
    shift_ = shift;
  }

  std::vector<Cell> cells_;
  size_t bytes_ = 0;
  int shift_ = kUnset;
};

}  // namespace emulator
}  // namespace pyconv
