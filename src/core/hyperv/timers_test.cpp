#include "core/hyperv/timers.h"

#include <gtest/gtest.h>

#include <vector>

namespace anykvm::core::hyperv {
namespace {

constexpr u32 kConfig = kMsrTimer0Config, kCount = kMsrTimer0Config + 1;
constexpr u64 kSource2 = u64{2} << 16;
constexpr u64 kFar = u64{1} << 40;  // ticks that no test waits for

struct FakeHost : Timers::Host {
  u64 reference_time() override { return time; }
  Told tell_expiry(unsigned timer, u64, u64 expiration) override {
    told.push_back({timer, expiration});
    return answer;
  }
  u64 time = 1000;
  Told answer = Told::kYes;
  std::vector<std::pair<unsigned, u64>> told;
};

struct HypervTimers : testing::Test {
  void write(u32 index, u64 value) {
    timers.write_msr(index, value, false);
    timers.run();
  }
  using Told = std::vector<std::pair<unsigned, u64>>;
  FakeHost host;
  Timers timers{host};
};

TEST_F(HypervTimers, count_starts_a_timer_that_enables_itself) {
  write(kConfig, kSource2 | kTimerAutoEnable);
  EXPECT_EQ(timers.deadline_ns(), kNever);
  write(kCount, kFar);
  EXPECT_TRUE(timers.read_msr(kConfig) & kTimerEnabled);
  EXPECT_NE(timers.deadline_ns(), kNever);
}

TEST_F(HypervTimers, one_shot_in_the_past_expires_at_once_and_switches_itself_off) {
  write(kConfig, kSource2 | kTimerAutoEnable);
  write(kCount, 999);
  EXPECT_EQ(host.told, (Told{{0, 999}}));
  EXPECT_FALSE(timers.read_msr(kConfig) & kTimerEnabled);
  EXPECT_EQ(timers.deadline_ns(), kNever);
}

TEST_F(HypervTimers, count_of_zero_stops) {
  write(kConfig, kSource2 | kTimerAutoEnable);
  write(kCount, kFar);
  write(kCount, 0);
  EXPECT_FALSE(timers.read_msr(kConfig) & kTimerEnabled);
  EXPECT_EQ(timers.deadline_ns(), kNever);
}

TEST_F(HypervTimers, each_timer_has_its_own_registers) {
  write(kConfig + 6, kSource2 | kTimerAutoEnable);
  write(kCount + 6, 5);
  EXPECT_EQ(host.told, (Told{{3, 5}}));
  EXPECT_EQ(timers.read_msr(kMsrTimer3Count), 5u);
}

TEST_F(HypervTimers, expiry_that_finds_no_room_is_told_when_the_slot_is_read) {
  host.answer = Timers::Host::Told::kLater;
  write(kConfig, kSource2 | kTimerAutoEnable);
  write(kCount, 500);
  ASSERT_EQ(host.told.size(), 1u);
  host.answer = Timers::Host::Told::kYes;
  timers.message_read(3);
  EXPECT_FALSE(timers.has_work());
  timers.message_read(2);
  ASSERT_TRUE(timers.has_work());
  timers.run();
  EXPECT_EQ(host.told.size(), 2u);
  EXPECT_FALSE(timers.read_msr(kConfig) & kTimerEnabled);
}

// A period of one tick is over whenever the timer is looked at.
TEST_F(HypervTimers, periodic_timer_keeps_its_beat) {
  write(kCount, 100);
  write(kConfig, kSource2 | kTimerPeriodic | kTimerEnabled);
  EXPECT_TRUE(host.told.empty());
  host.time = 1350;  // 1100 was missed by two and a half periods
  timers.message_read(2);
  while (timers.deadline_ns() > monotonic_ns()) {
  }
  timers.run();
  EXPECT_EQ(host.told, (Told{{0, 1100}}));
  host.time = 1400;
  while (timers.deadline_ns() > monotonic_ns()) {
  }
  timers.run();
  EXPECT_EQ(host.told.back().second, 1400u);
  EXPECT_TRUE(timers.read_msr(kConfig) & kTimerEnabled);
}

TEST_F(HypervTimers, source_0_switches_a_running_timer_off) {
  write(kConfig, kSource2 | kTimerAutoEnable);
  write(kCount, kFar);
  write(kConfig, kTimerEnabled);
  EXPECT_FALSE(timers.read_msr(kConfig) & kTimerEnabled);
  write(kConfig, kTimerEnabled | kTimerDirect);
  EXPECT_TRUE(timers.read_msr(kConfig) & kTimerEnabled);
}

// The client restores a timer that the guest had running.
TEST_F(HypervTimers, client_restores_configuration_and_count_as_they_were) {
  timers.write_msr(kCount, 0, true);
  timers.write_msr(kConfig, kSource2 | kTimerEnabled, true);
  timers.write_msr(kCount, kFar, true);
  timers.run();
  EXPECT_EQ(timers.read_msr(kConfig), kSource2 | kTimerEnabled);
  EXPECT_NE(timers.deadline_ns(), kNever);
}

}  // namespace
}  // namespace anykvm::core::hyperv
