#pragma once
// The command line as parsed values, or the one sentence that says what is wrong with it.
// Owner: main(). One thread.

#include <string>

#include "cli/exec.h"
#include "cli/top.h"
#include "vmm/failure.h"
#include "vmm/machine.h"

namespace anykvm::cli {

enum class Command { kRun, kExec, kDoctor, kTop, kPrint };

struct Options {
  Command command = Command::kPrint;
  vmm::MachineConfig machine;  // kRun
  ExecOptions exec;            // kExec
  bool json = false;           // kDoctor
  TopOptions top;              // kTop
  std::string text;            // kPrint: help or version, for standard output
};

vmm::Outcome<Options> parse_options(int argc, const char* const* argv);

}  // namespace anykvm::cli
