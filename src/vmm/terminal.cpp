#include "vmm/terminal.h"

#include <signal.h>
#include <termios.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <utility>

namespace anykvm::vmm {
namespace {

// What a signal handler needs, so global. Written before g_raw_fd is, read only while it is not -1.
termios g_saved;
std::atomic<int> g_raw_fd{-1};

void give_back() {
  int fd = g_raw_fd.exchange(-1);
  if (fd >= 0) tcsetattr(fd, TCSANOW, &g_saved);
}

// The default action was reset by SA_RESETHAND, and the signal is delivered again when the handler returns.
void on_crash(int signal) {
  give_back();
  raise(signal);
}

// The engine handles some of these signals for translated code; it is opened later and passes on what is not
// its own.
void catch_crashes() {
  struct sigaction action {};
  action.sa_handler = on_crash;
  action.sa_flags = static_cast<int>(SA_RESETHAND | SA_ONSTACK);
  for (int signal : {SIGABRT, SIGSEGV, SIGBUS, SIGILL, SIGFPE}) sigaction(signal, &action, nullptr);
}

void set_raw(int fd) {
  termios raw = g_saved;
  cfmakeraw(&raw);
  tcsetattr(fd, TCSANOW, &raw);
}

}  // namespace

Outcome<RawTerminal> RawTerminal::enter(int fd) {
  RawTerminal terminal;
  if (!isatty(fd)) return terminal;
  if (tcgetattr(fd, &g_saved) < 0) return failure("cannot read the terminal's settings: {}", strerror(errno));
  static const bool registered = std::atexit(give_back) == 0;
  if (!registered) return failure("cannot arrange for the terminal's settings to be restored");
  catch_crashes();
  g_raw_fd = fd;
  set_raw(fd);
  terminal.m_active = true;
  return terminal;
}

RawTerminal::RawTerminal(RawTerminal&& other) noexcept : m_active(std::exchange(other.m_active, false)) {}

void RawTerminal::reenter() const {
  int fd = g_raw_fd;
  if (m_active && fd >= 0) set_raw(fd);
}

void RawTerminal::restore() {
  if (std::exchange(m_active, false)) give_back();
}

}  // namespace anykvm::vmm
