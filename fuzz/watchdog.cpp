#include "watchdog.h"

#include <signal.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>

namespace anykvm::fuzz {

u64 milliseconds_now() {
  auto now = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<u64>(std::chrono::duration_cast<std::chrono::milliseconds>(now).count());
}

Watchdog::Turn::Turn(Watchdog& watchdog, kvm_run* run, u64 milliseconds, std::string name)
    : m_watchdog(watchdog),
      m_run(run),
      m_deadline(milliseconds_now() + milliseconds),
      m_name(std::move(name)),
      m_thread(pthread_self()) {
  std::lock_guard lock(m_watchdog.m_mutex);
  m_watchdog.m_turns.push_back(this);
}

Watchdog::Turn::~Turn() {
  std::lock_guard lock(m_watchdog.m_mutex);
  auto& turns = m_watchdog.m_turns;
  turns.erase(std::find(turns.begin(), turns.end(), this));
  if (m_run) m_run->immediate_exit = 0;
}

Watchdog::Watchdog() {
  struct sigaction action {};
  action.sa_handler = [](int) {};
  sigaction(kSignal, &action, nullptr);
  m_thread = std::thread([this] { watch(); });
}

Watchdog::~Watchdog() {
  m_ends = true;
  m_thread.join();
}

void Watchdog::watch() {
  while (!m_ends) {
    {
      std::lock_guard lock(m_mutex);
      u64 now = milliseconds_now();
      for (Turn* turn : m_turns) look_at(*turn, now);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

void Watchdog::look_at(Turn& turn, u64 now) {
  if (now < turn.m_deadline) return;
  turn.m_over = true;
  if (now > turn.m_deadline + kPatience) {
    std::fprintf(stderr, "HANG: %s does not come back\n", turn.m_name.c_str());
    std::abort();
  }
  if (turn.m_run) turn.m_run->immediate_exit = 1;
  pthread_kill(turn.m_thread, kSignal);
}

}  // namespace anykvm::fuzz
