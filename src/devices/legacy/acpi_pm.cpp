#include "devices/legacy/acpi_pm.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace anykvm::devices {
namespace {

constexpr u16 kSciEnabled = 0x0001, kSleepTypeMask = 0x1c00, kSleepEnable = 0x2000;
constexpr unsigned kSleepTypeShift = 10;
constexpr u64 kTimerHz = 3579545;
constexpr u32 kTimerMask = 0xffffff;  // 24 bits: the FADT does not claim TMR_VAL_EXT

u32 timer_value(u64 ns) {
  return static_cast<u32>(static_cast<unsigned __int128>(ns) * kTimerHz / 1'000'000'000) & kTimerMask;
}

}  // namespace

void AcpiPm::read(u16 offset, std::span<u8> data) {
  std::array<u8, kSize + 4> image{};
  u16 enable = m_enable, control = m_sleep_type | kSciEnabled;
  u32 timer = timer_value(m_now_ns());
  std::memcpy(&image[kEvent + 2], &enable, sizeof enable);
  std::memcpy(&image[kControl], &control, sizeof control);
  std::memcpy(&image[kTimer], &timer, sizeof timer);
  if (offset + data.size() <= image.size()) std::copy_n(image.begin() + offset, data.size(), data.begin());
}

// The status bits are write-1-to-clear and never set; the timer is read-only.
void AcpiPm::write(u16 offset, std::span<const u8> data) {
  u32 value = 0;
  std::memcpy(&value, data.data(), std::min(data.size(), sizeof value));
  if (offset == kEvent && data.size() == 4) m_enable = static_cast<u16>(value >> 16);
  if (offset == kEvent + 2) m_enable = static_cast<u16>(value);
  if (offset == kControl && data.size() >= 2) write_control(static_cast<u16>(value));
}

void AcpiPm::write_control(u16 value) {
  m_sleep_type = value & kSleepTypeMask;
  bool soft_off = (value & kSleepTypeMask) >> kSleepTypeShift == kSleepTypeSoftOff;
  if ((value & kSleepEnable) && soft_off) m_power_off();
}

void ResetControl::write_byte(u16, u8 value) {
  u8 before = m_value.exchange(value);
  if (!(before & 4) && (value & 4)) m_reset();
}

}  // namespace anykvm::devices
