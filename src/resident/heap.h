#pragma once
// brk(2) for the resident program: the process's own is libc's. Owner: the process.

#include "base/expected.h"
#include "base/types.h"

namespace anykvm::resident {

// Before the program starts.
Result<> make_heap();
// The system call; in a trap.
long change_heap_end(u64 end);

}  // namespace anykvm::resident
