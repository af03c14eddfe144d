#include "devices/legacy/serial.h"

#include <gtest/gtest.h>

#include <string>

namespace anykvm::devices {
namespace {

class SerialTest : public testing::Test {
 protected:
  std::span<const u8> bytes(const std::string& text) {
    return {reinterpret_cast<const u8*>(text.data()), text.size()};
  }

  std::string m_sent;
  bool m_line = false;
  int m_ready_calls = 0;
  Serial m_serial{[this](bool level) { m_line = level; },
                  [this](u8 byte) { m_sent += static_cast<char>(byte); }, [this] { ++m_ready_calls; }};
};

constexpr u8 kDtrRtsOut2 = 0x0b, kReceiveInterrupt = 0x01;

TEST_F(SerialTest, written_byte_is_sent_and_transmitter_stays_empty) {
  m_serial.write_byte(0, 'x');
  EXPECT_EQ(m_sent, "x");
  EXPECT_EQ(m_serial.read_byte(5), 0x60);
}

TEST_F(SerialTest, enabling_transmit_interrupt_raises_line_until_iir_is_read) {
  m_serial.write_byte(4, kDtrRtsOut2);
  m_serial.write_byte(1, 0x02);
  EXPECT_TRUE(m_line);
  EXPECT_EQ(m_serial.read_byte(2), 0x02);
  EXPECT_FALSE(m_line);
  EXPECT_EQ(m_serial.read_byte(2), 0x01);
}

TEST_F(SerialTest, transmit_interrupt_returns_after_each_byte) {
  m_serial.write_byte(4, kDtrRtsOut2);
  m_serial.write_byte(1, 0x02);
  m_serial.read_byte(2);
  m_serial.write_byte(0, 'x');
  EXPECT_TRUE(m_line);
}

TEST_F(SerialTest, line_stays_low_without_out2) {
  m_serial.write_byte(1, 0x02);
  EXPECT_FALSE(m_line);
  m_serial.write_byte(4, 0x08);
  EXPECT_TRUE(m_line);
}

TEST_F(SerialTest, received_byte_raises_line_until_read) {
  m_serial.write_byte(4, kDtrRtsOut2);
  m_serial.write_byte(1, 0x01);
  EXPECT_EQ(m_serial.receive(bytes("q")), 1u);
  EXPECT_TRUE(m_line);
  EXPECT_EQ(m_serial.read_byte(2), 0x04);
  EXPECT_EQ(m_serial.read_byte(5) & 1, 1);
  EXPECT_EQ(m_serial.read_byte(0), 'q');
  EXPECT_FALSE(m_line);
  EXPECT_EQ(m_serial.read_byte(5) & 1, 0);
}

TEST_F(SerialTest, bytes_below_trigger_level_count_as_timeout) {
  m_serial.write_byte(2, 0x81);  // FIFO on, trigger at 8
  m_serial.write_byte(4, kDtrRtsOut2);
  m_serial.write_byte(1, 0x01);
  m_serial.receive(bytes("1234567"));
  EXPECT_EQ(m_serial.read_byte(2), 0xcc);
  m_serial.receive(bytes("8"));
  EXPECT_EQ(m_serial.read_byte(2), 0xc4);
}

TEST_F(SerialTest, receive_takes_nothing_before_the_guest_listens) {
  EXPECT_EQ(m_serial.receive(bytes("early")), 0u);
  m_serial.write_byte(4, kDtrRtsOut2);
  EXPECT_EQ(m_ready_calls, 0);
  m_serial.write_byte(1, kReceiveInterrupt);
  EXPECT_EQ(m_ready_calls, 1);
}

TEST_F(SerialTest, guest_that_polls_the_line_status_listens) {
  EXPECT_EQ(m_serial.receive(bytes("x")), 0u);
  for (int i = 0; i < 8; ++i) m_serial.read_byte(5);
  EXPECT_EQ(m_ready_calls, 1);
  EXPECT_EQ(m_serial.receive(bytes("x")), 1u);
}

TEST_F(SerialTest, guest_that_only_sends_does_not_listen) {
  for (int i = 0; i < 20; ++i) {
    m_serial.read_byte(5);
    m_serial.write_byte(0, 'y');
  }
  EXPECT_EQ(m_serial.receive(bytes("x")), 0u);
}

TEST_F(SerialTest, switching_the_fifo_on_keeps_what_was_received) {
  m_serial.write_byte(1, kReceiveInterrupt);
  m_serial.receive(bytes("x"));
  m_serial.write_byte(2, 0x01);
  EXPECT_EQ(m_serial.read_byte(0), 'x');
}

TEST_F(SerialTest, receive_stops_at_sixteen_bytes_and_calls_when_drained) {
  m_serial.write_byte(2, 0x01);
  m_serial.write_byte(1, kReceiveInterrupt);
  EXPECT_EQ(m_serial.receive(bytes("0123456789abcdefXYZ")), 16u);
  std::string read;
  for (int i = 0; i < 15; ++i) read += static_cast<char>(m_serial.read_byte(0));
  EXPECT_EQ(m_ready_calls, 0);
  read += static_cast<char>(m_serial.read_byte(0));
  EXPECT_EQ(read, "0123456789abcdef");
  EXPECT_EQ(m_ready_calls, 1);
}

TEST_F(SerialTest, without_fifo_one_byte_fits) {
  m_serial.write_byte(1, kReceiveInterrupt);
  EXPECT_EQ(m_serial.receive(bytes("ab")), 1u);
}

TEST_F(SerialTest, clearing_receive_fifo_drops_its_bytes) {
  m_serial.write_byte(2, 0x01);
  m_serial.write_byte(1, kReceiveInterrupt);
  m_serial.receive(bytes("ab"));
  m_serial.write_byte(2, 0x03);
  EXPECT_EQ(m_serial.read_byte(5) & 1, 0);
}

TEST_F(SerialTest, loopback_returns_byte_and_modem_lines_and_sends_nothing) {
  m_serial.write_byte(4, 0x1a);  // loop, OUT2, RTS: how Linux finds the port
  EXPECT_EQ(m_serial.read_byte(6) & 0xf0, 0x90);
  m_serial.write_byte(0, 0x5a);
  EXPECT_EQ(m_sent, "");
  EXPECT_EQ(m_serial.read_byte(0), 0x5a);
}

TEST_F(SerialTest, loopback_overrun_is_reported_once) {
  m_serial.write_byte(4, 0x10);
  m_serial.write_byte(0, 1);
  m_serial.write_byte(0, 2);
  EXPECT_EQ(m_serial.read_byte(5), 0x63);
  EXPECT_EQ(m_serial.read_byte(5), 0x61);
}

TEST_F(SerialTest, modem_status_deltas_clear_on_read) {
  m_serial.write_byte(4, 0x10);
  EXPECT_EQ(m_serial.read_byte(6), 0x0b);  // CTS, DSR and DCD fell
  EXPECT_EQ(m_serial.read_byte(6), 0x00);
}

TEST_F(SerialTest, divisor_latch_hides_data_and_interrupt_enable) {
  m_serial.write_byte(1, 0x05);
  m_serial.write_byte(3, 0x80);
  m_serial.write_byte(0, 0x01);
  m_serial.write_byte(1, 0x02);
  EXPECT_EQ(m_serial.read_byte(0), 0x01);
  EXPECT_EQ(m_serial.read_byte(1), 0x02);
  m_serial.write_byte(3, 0x03);
  EXPECT_EQ(m_serial.read_byte(1), 0x05);
  EXPECT_EQ(m_sent, "");
}

TEST_F(SerialTest, registers_have_only_the_bits_of_a_16550a) {
  m_serial.write_byte(1, 0xff);
  EXPECT_EQ(m_serial.read_byte(1), 0x0f);
  m_serial.write_byte(2, 0xe1);
  EXPECT_EQ(m_serial.read_byte(2) & 0xf0, 0xc0);
  m_serial.write_byte(7, 0xa5);
  EXPECT_EQ(m_serial.read_byte(7), 0xa5);
}

}  // namespace
}  // namespace anykvm::devices
