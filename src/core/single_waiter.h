#pragma once
// Sleeping and waking when there is only ever one sleeper: a word and a futex, no wait queue (SEEDS G1).
// Owner: whoever sleeps. wait() only from that thread; wake() from any thread and from signal handlers.

#include <atomic>

#include "base/types.h"

namespace anykvm::core {

inline constexpr u64 kNever = ~u64{0};

class SingleWaiter {
 public:
  // Sleeps until `ready()` holds, `deadline` (CLOCK_MONOTONIC, nanoseconds; kNever for none) has passed, or
  // somebody calls wake(). Whoever makes `ready()` true must do so before calling wake(). May return early:
  // look again.
  template <class Ready>
  void wait(Ready&& ready, u64 deadline) {
    // Announce first, look second; wake() publishes first and looks second. Sequential consistency between
    // the two store-load pairs makes at least one side see the other, so no wake-up is lost.
    m_state.store(kSleeping, std::memory_order_seq_cst);
    if (!ready()) sleep(deadline);
    m_state.store(kAwake, std::memory_order_relaxed);
  }

  // Cheap when nobody sleeps: a fence and a load. Async-signal-safe.
  void wake() {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (m_state.load(std::memory_order_relaxed) == kSleeping) wake_sleeper();
  }

 private:
  enum State : u32 { kAwake, kSleeping };

  void sleep(u64 deadline);
  void wake_sleeper();

  std::atomic<u32> m_state{kAwake};
};

// CLOCK_MONOTONIC in nanoseconds.
u64 monotonic_ns();

}  // namespace anykvm::core
