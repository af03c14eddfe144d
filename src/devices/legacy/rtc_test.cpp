#include "devices/legacy/rtc.h"

#include <gtest/gtest.h>

namespace anykvm::devices {
namespace {

constexpr i64 kSecond = 1'000'000'000;
constexpr i64 kStart = 951782399 * kSecond;  // 2000-02-28 23:59:59 UTC, a Monday

class RtcTest : public testing::Test {
 protected:
  u8 get(u8 index) {
    m_rtc.write_byte(0, index);
    return m_rtc.read_byte(1);
  }
  void set(u8 index, u8 value) {
    m_rtc.write_byte(0, index);
    m_rtc.write_byte(1, value);
  }

  i64 m_now = kStart;
  bool m_line = false;
  int m_deadline_changes = 0;
  Rtc m_rtc{[this](bool level) { m_line = level; }, [this] { return m_now; },
            [this] { ++m_deadline_changes; }};
};

TEST_F(RtcTest, time_reads_as_bcd_in_24_hours) {
  EXPECT_EQ(get(0), 0x59);
  EXPECT_EQ(get(2), 0x59);
  EXPECT_EQ(get(4), 0x23);
  EXPECT_EQ(get(6), 2);  // Sunday is 1
  EXPECT_EQ(get(7), 0x28);
  EXPECT_EQ(get(8), 0x02);
  EXPECT_EQ(get(9), 0x00);
  EXPECT_EQ(get(0x32), 0x20);
}

TEST_F(RtcTest, leap_day_follows) {
  m_now += kSecond;
  EXPECT_EQ(get(7), 0x29);
  EXPECT_EQ(get(8), 0x02);
}

TEST_F(RtcTest, binary_and_12_hour_modes_change_the_form) {
  set(11, 0x04);
  EXPECT_EQ(get(0), 59);
  EXPECT_EQ(get(4), 0x80 | 11);
  m_now += kSecond;
  EXPECT_EQ(get(4), 12);  // midnight
}

TEST_F(RtcTest, update_in_progress_shows_just_before_the_second) {
  EXPECT_EQ(get(10) & 0x80, 0);
  m_now += kSecond - 100'000;
  EXPECT_EQ(get(10) & 0x80, 0x80);
}

TEST_F(RtcTest, clock_set_while_frozen_goes_on_from_there) {
  set(11, 0x82);
  set(0, 0x30);
  set(2, 0x15);
  set(4, 0x06);
  m_now += 5 * kSecond;
  EXPECT_EQ(get(0), 0x30);
  set(11, 0x02);
  m_now += 2 * kSecond;
  EXPECT_EQ(get(0), 0x32);
  EXPECT_EQ(get(2), 0x15);
  EXPECT_EQ(get(4), 0x06);
}

TEST_F(RtcTest, register_d_says_valid_and_cmos_memory_reads_back) {
  EXPECT_EQ(get(13), 0x80);
  set(0x40, 0xa5);
  EXPECT_EQ(get(0x40), 0xa5);
}

TEST_F(RtcTest, nothing_to_wait_for_without_enabled_interrupts) {
  EXPECT_FALSE(m_rtc.next_deadline().has_value());
  m_now += 3 * kSecond;
  m_rtc.tick();
  EXPECT_FALSE(m_line);
}

TEST_F(RtcTest, update_interrupt_comes_each_second_until_c_is_read) {
  set(11, 0x12);
  EXPECT_EQ(m_rtc.next_deadline(), kStart + kSecond);
  m_now += kSecond;
  m_rtc.tick();
  EXPECT_TRUE(m_line);
  EXPECT_FALSE(m_rtc.next_deadline().has_value());
  EXPECT_EQ(get(12) & 0x90, 0x90);
  EXPECT_FALSE(m_line);
  EXPECT_EQ(m_rtc.next_deadline(), kStart + 2 * kSecond);
}

TEST_F(RtcTest, alarm_fires_at_its_time_only) {
  set(1, 0x05);
  set(3, 0x00);
  set(5, 0x00);
  set(11, 0x22);
  m_now += 5 * kSecond;
  m_rtc.tick();
  EXPECT_FALSE(m_line);
  m_now += kSecond;
  m_rtc.tick();
  EXPECT_TRUE(m_line);
  EXPECT_EQ(get(12) & 0xa0, 0xa0);
}

TEST_F(RtcTest, alarm_passed_over_between_two_ticks_still_fires) {
  set(1, 0x05);
  set(3, 0xc0);
  set(5, 0xc0);
  set(11, 0x22);
  m_now += 30 * kSecond;
  m_rtc.tick();
  EXPECT_TRUE(m_line);
}

TEST_F(RtcTest, periodic_interrupt_runs_at_1024_hz) {
  get(12);  // the flag is set without the interrupt enabled too
  set(11, 0x42);
  EXPECT_FALSE(m_line);
  ASSERT_TRUE(m_rtc.next_deadline().has_value());
  EXPECT_LE(*m_rtc.next_deadline() - m_now, kSecond / 1024);
  m_now += kSecond / 1024;
  m_rtc.tick();
  EXPECT_TRUE(m_line);
}

TEST_F(RtcTest, periodic_interrupt_goes_on_while_the_guest_sets_the_time) {
  set(11, 0xc2);
  get(12);
  ASSERT_TRUE(m_rtc.next_deadline().has_value());
  m_now += kSecond / 1024;
  m_rtc.tick();
  EXPECT_TRUE(m_line);
  EXPECT_EQ(get(12), 0xc0);
}

// MC146818A data sheet: the first update comes half a second after the divider is released.
TEST_F(RtcTest, divider_in_reset_stops_the_clock_and_its_interrupts) {
  set(11, 0x42);
  set(10, 0x76);
  get(12);
  EXPECT_FALSE(m_rtc.next_deadline().has_value());
  m_now += 10 * kSecond;
  m_rtc.tick();
  EXPECT_FALSE(m_line);
  EXPECT_EQ(get(0), 0x59);
  set(10, 0x26);
  m_now += kSecond / 2 - 1;
  EXPECT_EQ(get(0), 0x59);
  m_now += 1;
  EXPECT_EQ(get(0), 0x00);
  m_rtc.tick();
  EXPECT_TRUE(m_line);
}

TEST_F(RtcTest, freezing_the_clock_clears_update_interrupt_enable) {
  set(11, 0x92);
  EXPECT_EQ(get(11), 0x82);
}

}  // namespace
}  // namespace anykvm::devices
