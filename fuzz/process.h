#pragma once
// What a fuzzer wants to know of its own process. Owner: main(). Any thread.

#include "base/types.h"

namespace anykvm::fuzz {

long open_descriptors();
void print_descriptors();  // each with what it stands for
u64 resident_kib();

// A crash says what was running: `what` and the number last given. Call it before the engine installs its
// signal handlers, which pass on what is not theirs.
void report_crashes(const char* what);
void now_running(u64 number);

}  // namespace anykvm::fuzz
