#pragma once
// The keyboard controller's two ports (60H, 64H) with nothing plugged in: commands are answered, so that
// probing drivers do not wait for timeouts, and pulsing the reset line resets the machine. Owner: the
// machine. Thread-safe.

#include <deque>
#include <functional>
#include <mutex>

#include "devices/port_device.h"

namespace anykvm::devices {

class I8042 final : public BytePortDevice {
 public:
  explicit I8042(std::function<void()> reset) : m_reset(std::move(reset)) {}

  // Offset 0 is port 60H (data), offset 4 is port 64H (status and command).
  u8 read_byte(u16 offset) override;
  void write_byte(u16 offset, u8 value) override;

 private:
  struct Answer {
    u8 value;
    bool from_mouse;
  };
  void command(u8 value);
  void data(u8 value);
  void answer(u8 value, bool from_mouse = false) { m_answers.push_back({value, from_mouse}); }

  std::function<void()> m_reset;
  std::mutex m_mutex;  // guards everything below
  std::deque<Answer> m_answers;
  u8 m_configuration = 0x34;  // both ports' clocks off, system flag set
  u8 m_output_port = 0x03;    // reset line inactive, A20 open
  u8 m_pending_command = 0;   // command that takes the next data byte, or 0
};

}  // namespace anykvm::devices
