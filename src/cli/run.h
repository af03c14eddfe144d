#pragma once
// `anykvm run`: builds the machine, lends it the terminal, and turns how it ended into an exit code.
// Owner: main(). Only from the main thread.

#include "vmm/failure.h"
#include "vmm/machine.h"

namespace anykvm::cli {

// The process's exit code. Ends the process itself if a signal ended the guest, or if a vCPU thread is stuck.
vmm::Outcome<int> run(const vmm::MachineConfig& config);

}  // namespace anykvm::cli
