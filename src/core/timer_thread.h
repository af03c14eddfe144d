#pragma once
// One sleeping thread per VM that acts at deadlines of whoever cannot look at the clock itself: vCPUs inside
// guest code, the PIT. A halted vCPU sleeps on its own deadline instead and needs nobody
// (docs/decisions/timers.md). Owner: Vm. arm() and disarm() from any thread; callbacks run on the timer
// thread, one at a time.

#include <atomic>
#include <functional>
#include <list>
#include <mutex>
#include <thread>

#include "core/single_waiter.h"

namespace anykvm::core {

class TimerThread {
 public:
  class Timer {
   public:
    explicit Timer(std::function<void()> action) : m_action(std::move(action)) {}

   private:
    friend class TimerThread;
    std::atomic<u64> m_deadline{kNever};
    std::function<void()> m_action;
  };

  TimerThread() = default;
  ~TimerThread();
  TimerThread(const TimerThread&) = delete;
  TimerThread& operator=(const TimerThread&) = delete;

  // The action must not call add() or remove(). It runs on the timer thread.
  Timer* add(std::function<void()> action);
  // When it returns, the action does not run and never will.
  void remove(Timer* timer);

  // Sets the deadline (CLOCK_MONOTONIC, ns). The thread is woken only if that is earlier than what it sleeps
  // for: arming is dear, and a wake-up that finds nothing to do is cheap (DESIGN D12).
  void arm(Timer* timer, u64 deadline);
  void disarm(Timer* timer) { timer->m_deadline.store(kNever, std::memory_order_relaxed); }

 private:
  void start();
  void loop();
  u64 earliest();
  void run_due(u64 now);

  std::mutex m_mutex;  // guards m_timers, m_thread's start; held while actions run
  std::list<Timer> m_timers;
  std::thread m_thread;
  std::once_flag m_started;
  SingleWaiter m_waiter;
  std::atomic<u64> m_sleeping_until{0};  // 0: awake and about to look
  std::atomic<bool> m_stop{false};
};

}  // namespace anykvm::core
