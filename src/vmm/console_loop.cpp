#include "vmm/console_loop.h"

#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <ctime>

#include "vmm/notice.h"

namespace anykvm::vmm {
namespace {

using std::chrono::nanoseconds;

constexpr size_t kTypeAhead = 65536;  // a person typing at a guest that does not listen
constexpr const char* kHelp = "Ctrl-A X: leave the guest.  Ctrl-A A: send Ctrl-A.  Ctrl-A H: this help.";

i64 realtime_ns() {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  return i64{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

}  // namespace

ConsoleLoop::ConsoleLoop(Parts parts, std::optional<nanoseconds> time_limit) : m_parts(parts) {
  if (time_limit) m_deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(*time_limit);
}

std::optional<nanoseconds> ConsoleLoop::time_to_sleep() {
  std::optional<nanoseconds> result;
  if (m_deadline) result = *m_deadline - Clock::now();
  if (auto deadline = m_parts.rtc.next_deadline()) {
    nanoseconds left(*deadline - realtime_ns());
    result = result ? std::min(*result, left) : left;
  }
  if (result) result = std::max(*result, nanoseconds(0));
  return result;
}

// A pipe is read only as fast as the guest reads. From a terminal we always read, for the escape key must
// work even if the guest hangs.
bool ConsoleLoop::wants_input() const {
  return m_input_open && (m_pending.empty() || m_parts.terminal.active());
}

void ConsoleLoop::wait() {
  pollfd fds[] = {{m_parts.wakeup.fd(), POLLIN, 0},
                  {m_parts.signal_fd, POLLIN, 0},
                  {wants_input() ? m_parts.input_fd : -1, POLLIN, 0}};
  timespec timeout{};
  auto sleep = time_to_sleep();
  if (sleep) {
    timeout.tv_sec = sleep->count() / 1'000'000'000;
    timeout.tv_nsec = sleep->count() % 1'000'000'000;
  }
  if (ppoll(fds, std::size(fds), sleep ? &timeout : nullptr, nullptr) < 0) return;  // EINTR: look again
  if (fds[0].revents) m_parts.wakeup.clear();
  if (fds[1].revents) read_signal();
  if (fds[2].revents) read_input();
}

void ConsoleLoop::read_input() {
  std::array<u8, 4096> buffer;
  ssize_t count = read(m_parts.input_fd, buffer.data(), buffer.size());
  if (count < 0 && (errno == EINTR || errno == EAGAIN)) return;
  if (count <= 0) {
    m_input_open = false;
    return;
  }
  std::span<const u8> typed(buffer.data(), static_cast<size_t>(count));
  if (!m_parts.terminal.active()) {
    m_pending.insert(m_pending.end(), typed.begin(), typed.end());
    return;
  }
  auto result = m_escape.feed(typed);
  if (result.help) notice(m_parts.terminal.active(), kHelp);
  if (result.quit) m_parts.stop.request({.cause = StopCause::kQuit});
  if (m_pending.size() + result.bytes.size() > kTypeAhead) return;
  m_pending.insert(m_pending.end(), result.bytes.begin(), result.bytes.end());
}

void ConsoleLoop::deliver() {
  if (m_pending.empty()) return;
  size_t taken = m_parts.serial.receive(m_pending);
  m_pending.erase(m_pending.begin(), m_pending.begin() + static_cast<ptrdiff_t>(taken));
}

void ConsoleLoop::read_signal() {
  signalfd_siginfo info{};
  if (read(m_parts.signal_fd, &info, sizeof info) != sizeof info) return;
  if (info.ssi_signo == SIGCONT) return m_parts.terminal.reenter();
  m_parts.stop.request({.cause = StopCause::kSignal, .signal = static_cast<int>(info.ssi_signo)});
}

void ConsoleLoop::check_time_limit() {
  if (m_deadline && Clock::now() >= *m_deadline) m_parts.stop.request({.cause = StopCause::kTimeout});
}

void ConsoleLoop::run() {
  while (!m_parts.stop.requested()) {
    wait();
    deliver();
    m_parts.rtc.tick();
    check_time_limit();
  }
}

}  // namespace anykvm::vmm
