// What the compiler calls in a kernel of the checked build: ThreadSanitizer's hooks before loads and stores, and
// UndefinedBehaviorSanitizer's after a failed check. Both runtimes are ours: no library of theirs is linked.
#include <cstring>

#include "emulator/runtime.h"

namespace pyconv {
namespace emulator {

template <size_t BYTES>
static inline void hook(const void* at, Access access, const void* where) {
  if (size_t(static_cast<const char*>(at) - current->stack) < kStackBytes) return;
  if (reinterpret_cast<uintptr_t>(at) & (BYTES - 1)) {
    find("misaligned", where, nullptr, "an access of %zu bytes at %p, which is not aligned to them", BYTES, at);
    abandon();
  }
  check_access(at, BYTES, access, where);
}

#define PYCONV_HOOK(bytes)                                                                                       \
  extern "C" PYCONV_EXPORT void __tsan_read##bytes(void* at) { hook<bytes>(at, Access::kRead, PYCONV_WHERE); }   \
  extern "C" PYCONV_EXPORT void __tsan_write##bytes(void* at) { hook<bytes>(at, Access::kWrite, PYCONV_WHERE); } \
  extern "C" PYCONV_EXPORT void __tsan_unaligned_read##bytes(void* at) {                                         \
    check_access(at, bytes, Access::kRead, PYCONV_WHERE);                                                        \
  }                                                                                                              \
  extern "C" PYCONV_EXPORT void __tsan_unaligned_write##bytes(void* at) {                                        \
    check_access(at, bytes, Access::kWrite, PYCONV_WHERE);                                                       \
  }
PYCONV_HOOK(1)
PYCONV_HOOK(2)
PYCONV_HOOK(4)
PYCONV_HOOK(8)
PYCONV_HOOK(16)
#undef PYCONV_HOOK

extern "C" {

PYCONV_EXPORT void __tsan_read_range(void* at, size_t bytes) {
  check_access(at, bytes, Access::kRead, PYCONV_WHERE);
}
PYCONV_EXPORT void __tsan_write_range(void* at, size_t bytes) {
  check_access(at, bytes, Access::kWrite, PYCONV_WHERE);
}
// Clang's, for copies of structs and arrays.
PYCONV_EXPORT void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  check_access(from, bytes, Access::kRead, PYCONV_WHERE);
  check_access(to, bytes, Access::kWrite, PYCONV_WHERE);
  return memmove(to, from, bytes);
}
PYCONV_EXPORT void* __tsan_memmove(void* to, const void* from, size_t bytes) {
  check_access(from, bytes, Access::kRead, PYCONV_WHERE);
  check_access(to, bytes, Access::kWrite, PYCONV_WHERE);
  return memmove(to, from, bytes);
}
PYCONV_EXPORT void* __tsan_memset(void* to, int value, size_t bytes) {
  check_access(to, bytes, Access::kWrite, PYCONV_WHERE);
  return memset(to, value, bytes);
}
PYCONV_EXPORT void __tsan_init() {}
PYCONV_EXPORT void __tsan_func_entry(void*) {}
PYCONV_EXPORT void __tsan_func_exit() {}

// An index outside the declared extent of an array: of a local one too, which no shadow memory covers.
PYCONV_EXPORT void __ubsan_handle_out_of_bounds(void*, void* index) {
  find("out of bounds", PYCONV_WHERE, nullptr, "index %td is outside the array as it is declared",
       reinterpret_cast<ptrdiff_t>(index));
  abandon();
}
PYCONV_EXPORT void __ubsan_handle_divrem_overflow(void*, void*, void*) {
  find("arithmetic", PYCONV_WHERE, nullptr, "an integer division by zero");
  abandon();
}

}  // extern "C"

}  // namespace emulator
}  // namespace pyconv
