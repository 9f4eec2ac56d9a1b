// What a launch did wrong.
#pragma once
#include <string>

#define PYCONV_EMULATOR_RUNTIME
#include "emulator/emulate.h"

namespace pyconv {
namespace emulator {

// `where` and `other` are addresses in the kernel's code, or null; in the message %W stands for `other`. A finding is
// kept once for each pair of places.
void find(const char* kind, const void* where, const void* other, const char* format, ...)
    __attribute__((format(printf, 4, 5)));
bool is_new(const char* kind, const void* where, const void* other);  // worth the words

void forget_findings();
int findings_count();
std::string text_of(uint3 index);

}  // namespace emulator
}  // namespace pyconv
