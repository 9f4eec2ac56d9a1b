// What was found: one line each, `kind TAB where TAB other TAB message`, with addresses in the kernel's code as
// hexadecimal numbers. Python turns those into file and line.
#include <cstdarg>
#include <cstdio>
#include <set>
#include <tuple>

#include "emulator/runtime.h"

namespace pyconv {
namespace emulator {

static constexpr int kMaxFindings = 100;  // of a launch; the first are what matters
static std::string text;
static int count;
static std::set<std::tuple<std::string, const void*, const void*>> seen;

static void add(const char* kind, const void* where, const void* other, const std::string& message) {
  if (count >= kMaxFindings || !seen.insert({kind, where, other}).second) return;
  ++count;
  char addresses[64];
  snprintf(addresses, sizeof addresses, "\t%zx\t%zx\t", reinterpret_cast<size_t>(where),
           reinterpret_cast<size_t>(other));
  text += kind + (addresses + message) + "\n";
}

void find(const char* kind, const void* where, const void* other, const char* format, ...) {
  char message[1024];
  va_list arguments;
  va_start(arguments, format);
  const int length = vsnprintf(message, sizeof message - 200, format, arguments);
  va_end(arguments);
  if (current && length >= 0) {
    const uint3 block = launch.block_index, thread = current->index;
    const int used = length < int(sizeof message) - 200 ? length : int(sizeof message) - 201;
    snprintf(message + used, sizeof message - used, " | block (%u,%u,%u), thread (%u,%u,%u)", block.x, block.y,
             block.z, thread.x, thread.y, thread.z);
  }
  add(kind, where, other, message);
}

void find_in_launch(const char* kind, const std::string& message) { add(kind, nullptr, nullptr, message); }

extern "C" PYCONV_EXPORT int pyconv_emulator_findings_count() { return count; }

extern "C" PYCONV_EXPORT const char* pyconv_emulator_findings() { return text.c_str(); }

extern "C" PYCONV_EXPORT void pyconv_emulator_forget_findings() {
  text.clear();
  seen.clear();
  count = 0;
}

}  // namespace emulator
}  // namespace pyconv
