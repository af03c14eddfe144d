#include "devices/legacy/acpi_pm.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>

namespace anykvm::devices {
namespace {

class AcpiPmTest : public testing::Test {
 protected:
  void write16(u16 offset, u16 value) {
    std::array<u8, 2> data;
    std::memcpy(data.data(), &value, sizeof value);
    m_pm.write(offset, data);
  }
  u32 read(u16 offset, size_t size) {
    u32 value = 0;
    m_pm.read(offset, {reinterpret_cast<u8*>(&value), size});
    return value;
  }

  int m_power_offs = 0;
  u64 m_now = 0;
  AcpiPm m_pm{[this] { ++m_power_offs; }, [this] { return m_now; }};
};

TEST_F(AcpiPmTest, sleep_enable_with_type_5_powers_off) {
  write16(AcpiPm::kControl, 5 << 10 | 1 << 13);
  EXPECT_EQ(m_power_offs, 1);
}

TEST_F(AcpiPmTest, type_without_sleep_enable_does_not_power_off) {
  write16(AcpiPm::kControl, 5 << 10);
  EXPECT_EQ(m_power_offs, 0);
  EXPECT_EQ(read(AcpiPm::kControl, 2), 5u << 10 | 1);
}

TEST_F(AcpiPmTest, other_sleep_type_does_not_power_off) {
  write16(AcpiPm::kControl, 1 << 10 | 1 << 13);
  EXPECT_EQ(m_power_offs, 0);
}

TEST_F(AcpiPmTest, machine_is_always_in_acpi_mode) { EXPECT_EQ(read(AcpiPm::kControl, 2) & 1, 1u); }

TEST_F(AcpiPmTest, event_status_is_clear_and_enable_reads_back) {
  write16(AcpiPm::kEvent + 2, 0x0120);
  EXPECT_EQ(read(AcpiPm::kEvent, 2), 0u);
  EXPECT_EQ(read(AcpiPm::kEvent + 2, 2), 0x0120u);
}

TEST_F(AcpiPmTest, timer_counts_at_3579545_hz_in_24_bits) {
  m_now = 1'000'000'000;
  EXPECT_EQ(read(AcpiPm::kTimer, 4), 3579545u);
  m_now = 10'000'000'000;
  EXPECT_EQ(read(AcpiPm::kTimer, 4), 35795450u & 0xffffff);
}

TEST(ResetControl, rising_bit_2_resets_once) {
  int resets = 0;
  ResetControl control([&] { ++resets; });
  control.write_byte(0, 0x02);
  EXPECT_EQ(resets, 0);
  control.write_byte(0, 0x06);
  control.write_byte(0, 0x06);
  EXPECT_EQ(resets, 1);
  EXPECT_EQ(control.read_byte(0), 0x06);
}

}  // namespace
}  // namespace anykvm::devices
