#include "core/timer_thread.h"

#include <gtest/gtest.h>

namespace anykvm::core {
namespace {

constexpr u64 kMs = 1'000'000;

// A latch the timer action opens.
struct Fired {
  SingleWaiter waiter;
  std::atomic<u64> at{0};
  void fire() {
    at = monotonic_ns();
    waiter.wake();
  }
  bool wait_until(u64 deadline) {
    waiter.wait([&] { return at.load() != 0; }, deadline);
    return at.load() != 0;
  }
};

TEST(TimerThread, armed_timer_fires_once_and_not_early) {
  TimerThread timers;
  Fired fired;
  auto* timer = timers.add([&] { fired.fire(); });
  u64 deadline = monotonic_ns() + 5 * kMs;
  timers.arm(timer, deadline);
  ASSERT_TRUE(fired.wait_until(deadline + 2000 * kMs));
  EXPECT_GE(fired.at.load(), deadline);
}

TEST(TimerThread, earlier_deadline_overtakes_a_later_one) {
  TimerThread timers;
  Fired late, early;
  u64 now = monotonic_ns();
  timers.arm(timers.add([&] { late.fire(); }), now + 60'000 * kMs);
  timers.arm(timers.add([&] { early.fire(); }), now + 5 * kMs);
  EXPECT_TRUE(early.wait_until(now + 2000 * kMs));
  EXPECT_EQ(late.at.load(), 0u);
}

TEST(TimerThread, disarmed_timer_does_not_fire) {
  TimerThread timers;
  Fired cancelled, other;
  u64 now = monotonic_ns();
  auto* timer = timers.add([&] { cancelled.fire(); });
  timers.arm(timer, now + 5 * kMs);
  timers.disarm(timer);
  timers.arm(timers.add([&] { other.fire(); }), now + 10 * kMs);
  ASSERT_TRUE(other.wait_until(now + 2000 * kMs));
  EXPECT_EQ(cancelled.at.load(), 0u);
}

TEST(TimerThread, timer_rearmed_from_its_action_fires_again) {
  TimerThread timers;
  Fired fired;
  std::atomic<int> count{0};
  TimerThread::Timer* timer = nullptr;
  timer = timers.add([&] {
    if (++count < 3) return timers.arm(timer, monotonic_ns() + kMs);
    fired.fire();
  });
  timers.arm(timer, monotonic_ns() + kMs);
  EXPECT_TRUE(fired.wait_until(monotonic_ns() + 2000 * kMs));
}

}  // namespace
}  // namespace anykvm::core
