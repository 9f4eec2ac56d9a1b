// A block of memory in which nothing but the bytes asked for may be touched.
//
//   ... | fence page | slack, then the bytes | fence page | ...     the end at the fence
//   ... | fence page | the bytes, then slack | fence page | ...     the beginning at the fence
//
// The processor faults in a fence page, whatever instruction gets there. The slack, less than a page, is poisoned
// for AddressSanitizer; without it, a write there shows in writes_beside().
#pragma once
#include <sanitizer/asan_interface.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace pyconv {

class Block {
 public:
  // Every byte, slack too, is `fill`. A block with its end at the fence is aligned to `alignment` all the same: up to
  // so many bytes of its slack are then behind it. `bytes` < 0: no block, data() is null.
  Block(int64_t bytes, bool ends_at_fence, unsigned char fill, int64_t alignment = 1) : fill_(fill) {
    if (bytes < 0) return;
    const int64_t page = sysconf(_SC_PAGESIZE);
    bytes_ = bytes;
    room_ = (bytes + page - 1) / page * page;
    void* space = mmap(nullptr, room_ + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    first_ = static_cast<char*>(space) + page;
    if (space == MAP_FAILED || (room_ && mprotect(first_, room_, PROT_READ | PROT_WRITE))) {
      std::perror("no memory for a block");
      std::abort();
    }
    std::memset(first_, fill, room_);
    data_ = first_ + (ends_at_fence ? (room_ - bytes) / alignment * alignment : 0);
    ASAN_POISON_MEMORY_REGION(first_, data_ - first_);
    ASAN_POISON_MEMORY_REGION(data_ + bytes, first_ + room_ - (data_ + bytes));
  }
  ~Block() {
    if (!first_) return;
    const int64_t page = sysconf(_SC_PAGESIZE);
    ASAN_UNPOISON_MEMORY_REGION(first_, room_);
    munmap(first_ - page, room_ + 2 * page);
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  // Writes fault from now on.
  void protect() const {
    if (room_) mprotect(first_, room_, PROT_READ);
  }
  bool writes_beside() const {
    ASAN_UNPOISON_MEMORY_REGION(first_, room_);
    for (char* at = first_; at < first_ + room_; ++at) {
      if (at == data_) at += bytes_;
      if (at < first_ + room_ && static_cast<unsigned char>(*at) != fill_) return true;
    }
    return false;
  }

 private:
  int64_t bytes_ = 0, room_ = 0;
  unsigned char fill_ = 0;
  char *first_ = nullptr, *data_ = nullptr;
};

}  // namespace pyconv
