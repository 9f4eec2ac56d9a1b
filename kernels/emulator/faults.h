#pragma once
#include <setjmp.h>

namespace pyconv {
namespace emulator {

void install_fault_handlers();  // for a launch by this thread
void restore_fault_handlers();
extern sigjmp_buf after_fault;  // where a fault goes

}  // namespace emulator
}  // namespace pyconv
