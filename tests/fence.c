// An allocator in which every block of torch's ends (or begins) at a page that faults when touched, and is a
// fault itself once freed. tests/test_bounds.py preloads it, so a kernel that reads or writes one element
// outside an operand, its result or its workspace dies on the spot.
//
// torch's CPU allocator takes its memory from posix_memalign and nothing else; malloc is left alone.
//   PYCONV_FENCE=after   the last byte of a block is the last of its pages
//   PYCONV_FENCE=before  the first byte of a block is the first of its pages
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { kPage = 4096 };
static const size_t kArena = (size_t)1 << 38;  // address space only; pages become memory one block at a time
static char* arena;
static uint32_t* pages_of_block;  // by the number of its first page
static size_t next_free;          // blocks are never reused: an address means one block for the whole run
static int ends_at_fence;

static void* reserve(size_t size, int protection) {
  void* space = mmap(0, size, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return space == MAP_FAILED ? 0 : space;
}

__attribute__((constructor)) static void start(void) {
  const char* mode = getenv("PYCONV_FENCE");
  if (!mode) return;
  ends_at_fence = strcmp(mode, "before") != 0;
  pages_of_block = reserve(kArena / kPage * sizeof *pages_of_block, PROT_READ | PROT_WRITE);
  arena = pages_of_block ? reserve(kArena, PROT_NONE) : 0;
}

// A block's pages, and one page of fence between it and the next.
int posix_memalign(void** block, size_t alignment, size_t size) {
  if (!arena) {
    int (*real)(void**, size_t, size_t) = (int (*)(void**, size_t, size_t))dlsym(RTLD_NEXT, "posix_memalign");
    return real(block, alignment, size);
  }
  const size_t count = (size + kPage - 1) / kPage;
  const size_t first = 1 + __atomic_fetch_add(&next_free, count + 1, __ATOMIC_RELAXED);
  char* pages = arena + first * kPage;
  if ((first + count + 1) * kPage > kArena || mprotect(pages, count * kPage, PROT_READ | PROT_WRITE))
    return ENOMEM;
  pages_of_block[first] = (uint32_t)count;
  memset(pages, 0xFF, count * kPage);  // NaN
  // The alignment asked for is given up: the end has to be at the fence to the byte.
  *block = ends_at_fence ? pages + count * kPage - size : pages;
  return 0;
}

void free(void* block) {
  static void (*real)(void*);
  char* address = block;
  if (!arena || address < arena || address >= arena + kArena) {
    if (!real) real = (void (*)(void*))dlsym(RTLD_NEXT, "free");
    real(block);
    return;
  }
  const size_t first = (size_t)(address - arena) / kPage;
  mmap(arena + first * kPage, pages_of_block[first] * (size_t)kPage, PROT_NONE,
       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}
