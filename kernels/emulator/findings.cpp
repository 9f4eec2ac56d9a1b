// What was found: one line each, `kind TAB places TAB other place TAB message`. Places are offsets into the kernel's
// code in hexadecimal, which Python turns into file and line: of the access, then of the calls that led to it.
#include "emulator/findings.h"

#include <unwind.h>

#include <cstdarg>
#include <cstdio>
#include <set>
#include <tuple>

#include "emulator/runtime.h"

namespace pyconv {
namespace emulator {

static constexpr int kMaxFindings = 100;  // of a launch: the first are what matters
static std::string text;
static int count;
static std::set<std::tuple<std::string, const void*, const void*>> seen;

bool is_new(const char* kind, const void* where, const void* other) {
  return count < kMaxFindings && !seen.count({kind, where, other});
}

// Empty for a place outside the kernel's code.
static std::string offset_of(const void* place) {
  const size_t offset = size_t(static_cast<const char*>(place) - launch.code);
  char digits[24];
  snprintf(digits, sizeof digits, "%zx", offset);
  return offset < launch.code_bytes ? digits : "";
}

// `where` and the calls above it, if it is on the stack that is running now.
static std::string with_callers(const void* where) {
  struct Trace {
    const void* wanted;
    bool found;
    std::string places;
  } trace{where, false, ""};
  const auto step = [](_Unwind_Context* context, void* data) {
    Trace& trace = *static_cast<Trace*>(data);
    const void* const place = reinterpret_cast<const void*>(_Unwind_GetIP(context));
    trace.found |= place == trace.wanted;
    if (trace.found) trace.places += " " + offset_of(place);
    return trace.places.size() < 200 ? _URC_NO_REASON : _URC_END_OF_STACK;
  };
  _Unwind_Backtrace(step, &trace);
  return trace.found ? trace.places : offset_of(where);
}

static void add(const char* kind, const void* where, const void* other, const std::string& message) {
  seen.insert({kind, where, other});
  ++count;
  text += std::string(kind) + "\t" + with_callers(where) + "\t" + offset_of(other) + "\t" + message + "\n";
}

void find(const char* kind, const void* where, const void* other, const char* format, ...) {
  if (!is_new(kind, where, other)) return;
  char message[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  std::string all = message;
  if (current) {
    all += " | block " + text_of(launch.block_index) + ", thread " + text_of(current->index);
  }
  add(kind, where, other, all);
}

std::string text_of(uint3 index) {
  return "(" + std::to_string(index.x) + "," + std::to_string(index.y) + "," + std::to_string(index.z) + ")";
}

extern "C" PYCONV_EXPORT const char* pyconv_emulator_findings() { return text.c_str(); }

void forget_findings() {
  text.clear();
  seen.clear();
  count = 0;
}

int findings_count() { return count; }

}  // namespace emulator
}  // namespace pyconv
