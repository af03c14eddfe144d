#pragma once
// The MC146818 real-time clock and its 128 bytes of CMOS memory, behind ports 70H (index) and 71H (data).
// Owner: the machine. Thread-safe; the console loop calls tick() at next_deadline().

#include <array>
#include <ctime>
#include <functional>
#include <mutex>
#include <optional>

#include "devices/port_device.h"

namespace anykvm::devices {

class Rtc final : public BytePortDevice {
 public:
  // `now_ns`: nanoseconds since 1970 (UTC). `deadline_changed`: next_deadline() must be asked again.
  Rtc(IrqLine irq, std::function<i64()> now_ns, std::function<void()> deadline_changed);

  u8 read_byte(u16 offset) override;
  void write_byte(u16 offset, u8 value) override;

  // When tick() should be called next, on the clock of `now_ns`; nothing while no interrupt is enabled.
  std::optional<i64> next_deadline();
  void tick();

 private:
  u8 read_register(u8 index);
  void write_register(u8 index, u8 value);
  void write_control(u8 value);
  u8 read_flags();
  i64 guest_now() const;
  bool stopped() const;  // its divider is
  bool frozen() const;   // it is stopped, or the guest sets the time
  void refresh_time();
  void set_clock_from_registers(i64 into_second = 0);
  void write_divider(u8 value);
  bool alarm_matches(const std::tm& time) const;
  void collect_flags();
  void collect_updates();
  void update_irq();
  std::optional<i64> deadline() const;
  i64 period_ns() const;
  i64 periods_by_now() const;
  u8 encode(int value) const;
  int decode(u8 value) const;
  u8 encode_hour(int hour) const;
  int decode_hour(u8 value) const;

  IrqLine m_irq;
  std::function<i64()> m_now_ns;
  std::function<void()> m_deadline_changed;

  std::mutex m_mutex;  // guards everything below
  std::array<u8, 128> m_cmos{};
  i64 m_offset_ns = 0;    // guest time minus host time
  i64 m_seen_second = 0;  // the flags in register C are up to date until here
  i64 m_seen_period = 0;
  bool m_line = false;
  u8 m_index = 0;
};

}  // namespace anykvm::devices
