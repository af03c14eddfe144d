#pragma once
// What the resident program's system calls become: most are done as they are, a few are ours.
// Owner: the process; to be installed once, before the program starts.

namespace anykvm::resident {

void install_traps();

}  // namespace anykvm::resident
