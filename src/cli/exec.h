#pragma once
// `anykvm exec`: puts a command in this process's place, with the preload library that answers for /dev/kvm.
// One that is linked statically runs inside this process (resident/start.h). Owner: main(). Only from the
// main thread.

#include <string>
#include <vector>

#include "vmm/failure.h"

namespace anykvm::cli {

struct ExecOptions {
  bool prefer_hardware = false;
  std::string argv0;                 // empty: as in `command`
  std::vector<std::string> command;  // at least its name
};

// Returns only if the command cannot be started: the exit code, 127 if there is no such command and 1 for
// other reasons (126 if it may not be executed), after saying so. With a failure: the sentence, exit code 1.
vmm::Outcome<int> exec(const ExecOptions& options);

}  // namespace anykvm::cli
