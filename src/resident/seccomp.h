#pragma once
// Filters that the resident program puts on its own system calls. What we do in its stead is not in them, so
// each gets a beginning that lets our code through. Owner: the process. In a trap, but for the first.

#include "base/expected.h"
#include "base/types.h"
#include "resident/call.h"

namespace anykvm::resident {

// Which code is ours; before the program starts.
void note_our_code();

// seccomp(2), and prctl(2) for the same.
Answer call_on_seccomp(const Call& call);

}  // namespace anykvm::resident
