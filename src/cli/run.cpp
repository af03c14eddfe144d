#include "cli/run.h"

#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "cli/anykvm_backend.h"
#include "vmm/notice.h"

namespace anykvm::cli {
namespace {

using vmm::failure;
using vmm::Outcome;
using vmm::StopCause;

constexpr int kExitFailure = 1, kExitTimeout = 124;

// Signals that end the program are read by the console loop, so that it can give the terminal back first.
// Blocked before any thread exists, so that all threads inherit it. SIGPIPE becomes an error of write().
Outcome<int> open_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGCONT}) sigaddset(&signals, signal);
  signal(SIGPIPE, SIG_IGN);
  int fd = -1;
  if (pthread_sigmask(SIG_BLOCK, &signals, nullptr) == 0)
    fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
  if (fd < 0) return failure("cannot watch for signals: {}", strerror(errno));
  return fd;
}

// Dies of the signal, so that the shell sees what happened. Returns only if the signal is ignored.
void die_of(int number) {
  signal(number, SIG_DFL);
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, number);
  raise(number);
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
}

const char* describe(StopCause cause) {
  switch (cause) {
    case StopCause::kPowerOff:
      return "the guest powered off";
    case StopCause::kReset:
      return "the guest reset";
    case StopCause::kTripleFault:
      return "the guest reset by a triple fault";
    case StopCause::kQuit:
      return "left the guest";
    case StopCause::kTimeout:
      return "time is up";
    case StopCause::kSignal:
      return "ended by a signal";
    case StopCause::kError:
      return "the guest stopped";
  }
  return "";
}

void tell_end(const vmm::MachineConfig& config, const vmm::RunReport& report) {
  std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - config.started;
  vmm::notice(false, fmt::format("{} after {:.2f} s (engine {}, {} vCPU{}, {} exits)",
                                 describe(report.reason.cause), elapsed.count(), report.engine, config.cpus,
                                 config.cpus == 1 ? "" : "s", report.exits));
}

int exit_code(const vmm::RunReport& report) {
  switch (report.reason.cause) {
    case StopCause::kError:
      return kExitFailure;
    case StopCause::kTimeout:
      return kExitTimeout;
    case StopCause::kSignal:
      return 128 + report.reason.signal;
    default:
      return 0;
  }
}

}  // namespace

Outcome<int> run(const vmm::MachineConfig& config) {
  int signal_fd = TRY(open_signals());
  bool kernel = config.accelerator == vmm::Accelerator::kKernel;
  std::unique_ptr<vmm::KvmBackend> backend = kernel ? vmm::make_kernel_backend() : make_anykvm_backend();
  std::unique_ptr<vmm::Machine> machine = TRY(vmm::Machine::create(config, *backend));
  vmm::RawTerminal terminal = TRY(vmm::RawTerminal::enter(STDIN_FILENO));
  vmm::RunReport report = machine->run(terminal, signal_fd);
  terminal.restore();

  const vmm::StopReason& reason = report.reason;
  if (reason.cause == StopCause::kError) vmm::notice(false, reason.detail);
  tell_end(config, report);
  if (reason.cause == StopCause::kSignal) die_of(reason.signal);
  // A stuck thread still uses the machine, so its destructor must not run.
  if (!report.threads_ended) std::_Exit(exit_code(report));
  return exit_code(report);
}

}  // namespace anykvm::cli
