#pragma once
// Runs a statically linked program inside this process, so that its system calls can be answered here: the
// dynamic linker that would put a library before them is missing (docs/decisions/static-clients.md).
// Owner: main(), once. Only from the main thread.

#include <string>
#include <vector>

#include "base/expected.h"

namespace anykvm::resident {

struct Start {
  std::string program;                 // its file
  std::vector<std::string> arguments;  // with its name
  std::string preload_library;         // for children that are linked dynamically
  bool prefer_hardware = false;        // for children
};

// Returns only if the program cannot be started.
Error start(const Start& what);

}  // namespace anykvm::resident
