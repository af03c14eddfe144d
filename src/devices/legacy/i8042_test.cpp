#include "devices/legacy/i8042.h"

#include <gtest/gtest.h>

namespace anykvm::devices {
namespace {

class I8042Test : public testing::Test {
 protected:
  int m_resets = 0;
  I8042 m_controller{[this] { ++m_resets; }};
};

constexpr u16 kData = 0, kCommand = 4;

TEST_F(I8042Test, pulse_of_reset_line_resets) {
  m_controller.write_byte(kCommand, 0xfe);
  EXPECT_EQ(m_resets, 1);
}

TEST_F(I8042Test, pulse_of_no_line_does_not_reset) {
  m_controller.write_byte(kCommand, 0xff);
  EXPECT_EQ(m_resets, 0);
}

TEST_F(I8042Test, output_port_with_reset_bit_low_resets) {
  m_controller.write_byte(kCommand, 0xd1);
  m_controller.write_byte(kData, 0xdf);
  EXPECT_EQ(m_resets, 0);
  m_controller.write_byte(kCommand, 0xd1);
  m_controller.write_byte(kData, 0xde);
  EXPECT_EQ(m_resets, 1);
}

TEST_F(I8042Test, idle_controller_has_nothing_to_read) {
  EXPECT_EQ(m_controller.read_byte(kCommand) & 0x03, 0);
  EXPECT_EQ(m_controller.read_byte(kData), 0);
}

TEST_F(I8042Test, configuration_byte_reads_back) {
  m_controller.write_byte(kCommand, 0x60);
  m_controller.write_byte(kData, 0x47);
  m_controller.write_byte(kCommand, 0x20);
  EXPECT_EQ(m_controller.read_byte(kCommand) & 1, 1);
  EXPECT_EQ(m_controller.read_byte(kData), 0x47);
  EXPECT_EQ(m_controller.read_byte(kCommand) & 1, 0);
}

TEST_F(I8042Test, self_test_passes) {
  m_controller.write_byte(kCommand, 0xaa);
  EXPECT_EQ(m_controller.read_byte(kData), 0x55);
}

TEST_F(I8042Test, byte_to_missing_keyboard_is_answered_at_once) {
  m_controller.write_byte(kData, 0xf2);
  EXPECT_EQ(m_controller.read_byte(kCommand) & 0x21, 0x01);
  EXPECT_EQ(m_controller.read_byte(kData), 0xfe);
}

TEST_F(I8042Test, mouse_loopback_arrives_as_mouse_data) {
  m_controller.write_byte(kCommand, 0xd3);
  m_controller.write_byte(kData, 0x5a);
  EXPECT_EQ(m_controller.read_byte(kCommand) & 0x21, 0x21);
  EXPECT_EQ(m_controller.read_byte(kData), 0x5a);
}

}  // namespace
}  // namespace anykvm::devices
