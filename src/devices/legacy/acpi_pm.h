#pragma once
// The ACPI fixed hardware that a soft power-off needs: PM1a event and control registers and the PM timer.
// Also the reset control register at port 0CF9H.
// Owner: the machine. Thread-safe.

#include <atomic>
#include <functional>

#include "devices/port_device.h"

namespace anykvm::devices {

// Offsets 0-3: PM1a_EVT (status, enable), 4-5: PM1a_CNT, 8-11: PM_TMR (ACPI 6.5, 4.8.3). No event is ever
// raised, so there is no SCI.
class AcpiPm final : public PortDevice {
 public:
  static constexpr u16 kEvent = 0, kControl = 4, kTimer = 8, kSize = 12;
  static constexpr u8 kSleepTypeSoftOff = 5;  // the value that \_S5 in the DSDT announces

  // `now_ns` is any monotonic clock.
  AcpiPm(std::function<void()> power_off, std::function<u64()> now_ns)
      : m_power_off(std::move(power_off)), m_now_ns(std::move(now_ns)) {}

  void read(u16 offset, std::span<u8> data) override;
  void write(u16 offset, std::span<const u8> data) override;

 private:
  void write_control(u16 value);

  std::function<void()> m_power_off;
  std::function<u64()> m_now_ns;
  std::atomic<u16> m_enable{0};
  std::atomic<u16> m_sleep_type{0};
};

// Bit 1 says hard reset, bit 2 going from 0 to 1 does it.
class ResetControl final : public BytePortDevice {
 public:
  explicit ResetControl(std::function<void()> reset) : m_reset(std::move(reset)) {}
  u8 read_byte(u16) override { return m_value; }
  void write_byte(u16, u8 value) override;

 private:
  std::function<void()> m_reset;
  std::atomic<u8> m_value{0};
};

}  // namespace anykvm::devices
