#include "core/timer_thread.h"

#include <algorithm>

#include "base/counters.h"
#include "base/helper_thread.h"

namespace anykvm::core {

TimerThread::~TimerThread() {
  m_stop = true;
  m_waiter.wake();
  if (m_thread.joinable()) m_thread.join();
}

TimerThread::Timer* TimerThread::add(std::function<void()> action) {
  std::lock_guard lock(m_mutex);
  return &m_timers.emplace_back(std::move(action));
}

void TimerThread::remove(Timer* timer) {
  std::lock_guard lock(m_mutex);
  m_timers.remove_if([timer](const Timer& candidate) { return &candidate == timer; });
}

void TimerThread::start() {
  std::call_once(m_started, [this] { m_thread = start_helper_thread("anykvm-timer", [this] { loop(); }); });
}

void TimerThread::arm(Timer* timer, u64 deadline) {
  if (deadline == kNever) return disarm(timer);
  timer->m_deadline.store(deadline, std::memory_order_seq_cst);
  start();
  if (deadline >= m_sleeping_until.load(std::memory_order_seq_cst)) return;
  ANYKVM_COUNT(timer_arms);
  m_waiter.wake();
}

u64 TimerThread::earliest() {
  std::lock_guard lock(m_mutex);
  u64 first = kNever;
  for (const Timer& timer : m_timers)
    first = std::min(first, timer.m_deadline.load(std::memory_order_seq_cst));
  return first;
}

void TimerThread::run_due(u64 now) {
  std::lock_guard lock(m_mutex);
  for (Timer& timer : m_timers) {
    u64 deadline = timer.m_deadline.load();
    if (deadline > now) continue;
    // A concurrent arm() with a later deadline wins: then this expiry is not ours to report.
    if (timer.m_deadline.compare_exchange_strong(deadline, kNever)) timer.m_action();
  }
}

void TimerThread::loop() {
  while (!m_stop) {
    u64 until = earliest();
    m_sleeping_until.store(until, std::memory_order_seq_cst);
    // arm() stores the deadline, then reads m_sleeping_until; we store that, then read the deadlines again.
    m_waiter.wait([&] { return m_stop.load() || earliest() < until || until <= monotonic_ns(); }, until);
    m_sleeping_until.store(0, std::memory_order_seq_cst);
    run_due(monotonic_ns());
  }
}

}  // namespace anykvm::core
