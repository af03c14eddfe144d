// The command line's entry: parse, do, one sentence on standard error if it cannot be done.

#include <chrono>
#include <cstdio>

#include "cli/doctor.h"
#include "cli/exec.h"
#include "cli/options.h"
#include "cli/run.h"
#include "cli/top.h"
#include "vmm/notice.h"

namespace {

int print(const std::string& text) {
  return std::fputs(text.c_str(), stdout) < 0 || std::fflush(stdout) ? 1 : 0;
}

int fail(const anykvm::vmm::Failure& failure) {
  anykvm::vmm::notice(false, failure.text);
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace anykvm;
  auto started = std::chrono::steady_clock::now();
  auto options = cli::parse_options(argc, argv);
  if (!options) return fail(options.error());
  if (options.value().command == cli::Command::kPrint) return print(options.value().text);
  if (options.value().command == cli::Command::kDoctor) {
    cli::Report report = cli::examine_host();
    int printed = print(options.value().json ? cli::to_json(report) : cli::to_text(report));
    return report.usable() ? printed : 1;
  }
  if (options.value().command == cli::Command::kExec) {
    auto code = cli::exec(options.value().exec);
    return code ? code.value() : fail(code.error());
  }
  if (options.value().command == cli::Command::kTop) {
    auto shown = cli::top(options.value().top);
    return shown ? 0 : fail(shown.error());
  }
  options.value().machine.started = started;
  auto code = cli::run(options.value().machine);
  return code ? code.value() : fail(code.error());
}
