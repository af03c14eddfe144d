#include "core/single_waiter.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <thread>

namespace anykvm::core {
namespace {

constexpr u64 kMs = 1'000'000;

TEST(SingleWaiter, seed_G1_condition_already_true_does_not_sleep) {
  SingleWaiter waiter;
  waiter.wait([] { return true; }, kNever);
}

TEST(SingleWaiter, seed_G1_wake_without_sleeper_is_not_remembered) {
  SingleWaiter waiter;
  waiter.wake();
  u64 start = monotonic_ns();
  waiter.wait([] { return false; }, start + 5 * kMs);
  EXPECT_GE(monotonic_ns(), start + 5 * kMs);
}

TEST(SingleWaiter, seed_G1_deadline_in_the_past_returns_at_once) {
  SingleWaiter waiter;
  waiter.wait([] { return false; }, 1);
}

// Ping-pong between two sleepers: a single lost wake-up would hang it (the test program has a time limit).
TEST(SingleWaiter, seed_G1_no_wake_up_is_lost_in_many_round_trips) {
  constexpr u32 kRounds = 20000;
  SingleWaiter ping, pong;
  std::atomic<u32> sent{0}, answered{0};
  std::thread other([&] {
    for (u32 round = 1; round <= kRounds; ++round) {
      while (sent.load() < round) ping.wait([&] { return sent.load() >= round; }, kNever);
      answered.store(round);
      pong.wake();
    }
  });
  for (u32 round = 1; round <= kRounds; ++round) {
    sent.store(round);
    ping.wake();
    while (answered.load() < round) pong.wait([&] { return answered.load() >= round; }, kNever);
  }
  other.join();
  EXPECT_EQ(answered.load(), kRounds);
}

TEST(SingleWaiter, seed_G1_sleeper_uses_no_cpu_time) {
  SingleWaiter waiter;
  rusage before{}, after{};
  getrusage(RUSAGE_THREAD, &before);
  waiter.wait([] { return false; }, monotonic_ns() + 40 * kMs);
  getrusage(RUSAGE_THREAD, &after);
  long used_us = (after.ru_utime.tv_sec - before.ru_utime.tv_sec) * 1'000'000 + after.ru_utime.tv_usec -
                 before.ru_utime.tv_usec;
  EXPECT_LT(used_us, 10'000);
}

}  // namespace
}  // namespace anykvm::core
