#include <gtest/gtest.h>

#include <cstring>

#include "irqchip/test_support.h"

namespace anykvm::irqchip {
namespace {

using testing::FakeClock;
using testing::TestCpu;

struct LapicTimerTest : ::testing::Test {
  LapicTimerTest() : cpu(bus, clock, 0) {
    cpu.write(kApicTimerDivide, 0xb);  // by 1
    cpu.write(kApicLvtTimer, 0xec);
  }
  void advance(u64 ns) {
    clock.ns += ns;
    cpu.lapic.expire(clock.ns);
  }
  u64 left() { return cpu.lapic.next_deadline_ns() - clock.ns; }
  void serve() {
    cpu.take();
    cpu.write(kApicEoi, 0);
  }

  FakeClock clock;
  ApicBus bus;
  TestCpu cpu;
};

TEST_F(LapicTimerTest, one_shot_fires_once_at_its_time) {
  cpu.write(kApicTimerInitial, 1000);
  EXPECT_EQ(left(), 1000u);
  advance(999);
  EXPECT_EQ(cpu.pending(), -1);
  EXPECT_EQ(cpu.read(kApicTimerCurrent), 1u);
  advance(1);
  EXPECT_EQ(cpu.take(), 0xec);
  EXPECT_EQ(cpu.lapic.next_deadline_ns(), kNever);
  EXPECT_EQ(cpu.read(kApicTimerCurrent), 0u);
}

TEST_F(LapicTimerTest, divide_register_stretches_the_count) {
  cpu.write(kApicTimerDivide, 0x3);  // by 16
  cpu.write(kApicTimerInitial, 1000);
  EXPECT_EQ(left(), 16'000u);
  clock.ns += 8'000;
  EXPECT_EQ(cpu.read(kApicTimerCurrent), 500u);
  cpu.write(kApicTimerDivide, 0xa);  // by 128
  EXPECT_EQ(left(), 64'000u);
  cpu.write(kApicTimerDivide, 0x0);  // by 2
  EXPECT_EQ(left(), 1'000u);
}

TEST_F(LapicTimerTest, writing_zero_stops) {
  cpu.write(kApicTimerInitial, 1000);
  cpu.write(kApicTimerInitial, 0);
  EXPECT_EQ(cpu.lapic.next_deadline_ns(), kNever);
}

TEST_F(LapicTimerTest, deadline_changes_are_announced) {
  cpu.host.deadline_changes = 0;
  cpu.write(kApicTimerInitial, 1000);
  EXPECT_EQ(cpu.host.deadline_changes, 1);
}

TEST_F(LapicTimerTest, periodic_goes_on_from_its_deadline_however_late_it_is_seen) {
  cpu.write(kApicLvtTimer, 0x200ec);
  cpu.write(kApicTimerInitial, 1'000'000);
  advance(1'300'000);
  EXPECT_EQ(cpu.pending(), 0xec);
  EXPECT_EQ(left(), 700'000u);
  EXPECT_EQ(cpu.read(kApicTimerCurrent), 700'000u);
  serve();
  advance(700'000);
  EXPECT_EQ(cpu.pending(), 0xec);
}

TEST_F(LapicTimerTest, missed_periods_count_as_one) {
  cpu.write(kApicLvtTimer, 0x200ec);
  cpu.write(kApicTimerInitial, 1'000'000);
  advance(10'500'000);
  EXPECT_EQ(left(), 500'000u);
  serve();
  EXPECT_EQ(cpu.pending(), -1);
}

TEST_F(LapicTimerTest, tiny_period_is_stretched) {
  cpu.write(kApicLvtTimer, 0x200ec);
  cpu.write(kApicTimerInitial, 1);
  advance(1);
  EXPECT_EQ(left(), 200'000u);
}

TEST_F(LapicTimerTest, masked_timer_counts_without_interrupt_or_deadline) {
  cpu.write(kApicLvtTimer, 0x100ec);
  cpu.write(kApicTimerInitial, 1000);
  EXPECT_EQ(cpu.lapic.next_deadline_ns(), kNever);
  clock.ns += 400;
  EXPECT_EQ(cpu.read(kApicTimerCurrent), 600u);
  clock.ns += 1000;
  cpu.write(kApicLvtTimer, 0xec);  // what fired while masked is lost
  EXPECT_EQ(cpu.pending(), -1);
  EXPECT_EQ(cpu.lapic.next_deadline_ns(), kNever);
}

TEST_F(LapicTimerTest, unmasking_before_the_deadline_brings_it_back) {
  cpu.write(kApicLvtTimer, 0x100ec);
  cpu.write(kApicTimerInitial, 1000);
  cpu.write(kApicLvtTimer, 0xec);
  EXPECT_EQ(left(), 1000u);
}

// QEMU restores no current count. What was running must not be lost.
TEST_F(LapicTimerTest, one_shot_that_is_restored_without_its_count_fires_at_once) {
  cpu.write(kApicTimerInitial, 1000);
  kvm_lapic_state page{};
  cpu.lapic.get_state(&page);
  const u32 none = 0;
  std::memcpy(page.regs + kApicTimerCurrent, &none, sizeof none);
  TestCpu other(bus, clock, 1);
  ASSERT_TRUE(other.lapic.set_state(page).ok());
  EXPECT_EQ(other.lapic.next_deadline_ns(), clock.ns);
  other.lapic.expire(clock.ns);
  EXPECT_EQ(other.pending(), 0xec);
  EXPECT_EQ(other.lapic.next_deadline_ns(), kNever);
}

struct TscDeadlineTest : LapicTimerTest {
  TscDeadlineTest() { cpu.write(kApicLvtTimer, 0x400ec); }
  u64 msr() {
    u64 value = 0;
    cpu.lapic.expire(clock.now_ns());
    EXPECT_TRUE(cpu.lapic.msr_read(kMsrTscDeadline, &value));
    return value;
  }
};

TEST_F(TscDeadlineTest, fires_at_the_tsc_value_and_clears_the_msr) {
  u64 deadline = clock.guest_tsc() + 2000;
  EXPECT_TRUE(cpu.lapic.msr_write(kMsrTscDeadline, deadline));
  EXPECT_EQ(msr(), deadline);
  EXPECT_EQ(left(), 1000u);
  advance(999);
  EXPECT_EQ(cpu.pending(), -1);
  advance(1);
  EXPECT_EQ(cpu.pending(), 0xec);
  EXPECT_EQ(msr(), 0u);
}

TEST_F(TscDeadlineTest, deadline_in_the_past_fires_at_once) {
  EXPECT_TRUE(cpu.lapic.msr_write(kMsrTscDeadline, 1));
  EXPECT_EQ(cpu.pending(), 0xec);
}

TEST_F(TscDeadlineTest, zero_disarms) {
  cpu.lapic.msr_write(kMsrTscDeadline, clock.guest_tsc() + 2000);
  cpu.lapic.msr_write(kMsrTscDeadline, 0);
  EXPECT_EQ(cpu.lapic.next_deadline_ns(), kNever);
}

TEST_F(TscDeadlineTest, initial_count_is_ignored_and_current_count_reads_zero) {
  cpu.write(kApicTimerInitial, 1000);
  EXPECT_EQ(cpu.lapic.next_deadline_ns(), kNever);
  cpu.lapic.msr_write(kMsrTscDeadline, clock.guest_tsc() + 2000);
  EXPECT_EQ(cpu.read(kApicTimerCurrent), 0u);
}

TEST_F(TscDeadlineTest, leaving_the_mode_disarms) {
  cpu.lapic.msr_write(kMsrTscDeadline, clock.guest_tsc() + 2000);
  cpu.write(kApicLvtTimer, 0xec);
  EXPECT_EQ(cpu.lapic.next_deadline_ns(), kNever);
  EXPECT_EQ(msr(), 0u);
}

TEST_F(LapicTimerTest, tsc_deadline_msr_is_ignored_in_other_modes) {
  EXPECT_TRUE(cpu.lapic.msr_write(kMsrTscDeadline, clock.guest_tsc() + 2000));
  EXPECT_EQ(cpu.lapic.next_deadline_ns(), kNever);
}

TEST_F(LapicTimerTest, tsc_deadline_needs_the_feature) {
  cpu.lapic.set_features({.x2apic = true, .tsc_deadline = false});
  EXPECT_TRUE(cpu.lapic.msr_write(kMsrTscDeadline, 1));  // a client that restores what it read
  EXPECT_EQ(cpu.lapic.next_deadline_ns(), kNever);
  cpu.write(kApicLvtTimer, 0x400ec);
  EXPECT_EQ(cpu.read(kApicLvtTimer), 0xecu);
}

}  // namespace
}  // namespace anykvm::irqchip
