#include "emulator/runtime.h"

namespace pyconv {
namespace emulator {

void check_access(const void*, size_t, Access, const void*) {}
void join_clocks(int, uint32_t) {}

}  // namespace emulator
}  // namespace pyconv
