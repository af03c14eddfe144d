#include "devices/legacy/rtc.h"

#include <algorithm>

namespace anykvm::devices {
namespace {

// Register numbers and bits of the MC146818A data sheet; 32H holds the century, as the FADT says.
constexpr u8 kSeconds = 0, kSecondsAlarm = 1, kMinutes = 2, kMinutesAlarm = 3, kHours = 4, kHoursAlarm = 5;
constexpr u8 kWeekday = 6, kDay = 7, kMonth = 8, kYear = 9, kA = 10, kB = 11, kC = 12, kD = 13,
             kCentury = 0x32;
constexpr u8 kAUpdating = 0x80;
constexpr u8 kAReset = 0x60;  // both: the divider stands still
constexpr u8 kBFreeze = 0x80, kBPeriodic = 0x40, kBAlarm = 0x20, kBUpdate = 0x10, kBBinary = 0x04,
             kB24Hours = 0x02;
constexpr u8 kCRequest = 0x80;  // the other flags of C stand where B has their enable bits
constexpr u8 kDValid = 0x80;
constexpr u8 kPm = 0x80;
constexpr u8 kAlarmAny = 0xc0;  // an alarm byte with both top bits set matches everything
constexpr i64 kSecond = 1'000'000'000;
constexpr i64 kFirstUpdate = kSecond / 2;  // after the divider's reset
constexpr i64 kUpdateWindow = 244'000;     // "update in progress" rises this long before the second changes

i64 floor_div(i64 value, i64 by) { return value / by - (value % by < 0); }

}  // namespace

Rtc::Rtc(IrqLine irq, std::function<i64()> now_ns, std::function<void()> deadline_changed)
    : m_irq(std::move(irq)), m_now_ns(std::move(now_ns)), m_deadline_changed(std::move(deadline_changed)) {
  m_cmos[kA] = 0x26;  // 32.768 kHz time base, 1024 Hz periodic rate
  m_cmos[kB] = kB24Hours;
  m_seen_second = floor_div(guest_now(), kSecond);
}

i64 Rtc::guest_now() const { return m_now_ns() + m_offset_ns; }
bool Rtc::stopped() const { return (m_cmos[kA] & kAReset) == kAReset; }
bool Rtc::frozen() const { return stopped() || (m_cmos[kB] & kBFreeze); }

u8 Rtc::encode(int value) const {
  return static_cast<u8>(m_cmos[kB] & kBBinary ? value : value / 10 << 4 | value % 10);
}

int Rtc::decode(u8 value) const { return m_cmos[kB] & kBBinary ? value : (value >> 4) * 10 + (value & 15); }

u8 Rtc::encode_hour(int hour) const {
  if (m_cmos[kB] & kB24Hours) return encode(hour);
  int twelve = hour % 12 == 0 ? 12 : hour % 12;
  return static_cast<u8>(encode(twelve) | (hour >= 12 ? kPm : 0));
}

int Rtc::decode_hour(u8 value) const {
  if (m_cmos[kB] & kB24Hours) return decode(value);
  return decode(value & 0x7f) % 12 + (value & kPm ? 12 : 0);
}

void Rtc::refresh_time() {
  if (frozen()) return;
  time_t seconds = floor_div(guest_now(), kSecond);
  std::tm time{};
  gmtime_r(&seconds, &time);
  m_cmos[kSeconds] = encode(time.tm_sec);
  m_cmos[kMinutes] = encode(time.tm_min);
  m_cmos[kHours] = encode_hour(time.tm_hour);
  m_cmos[kWeekday] = encode(time.tm_wday + 1);
  m_cmos[kDay] = encode(time.tm_mday);
  m_cmos[kMonth] = encode(time.tm_mon + 1);
  m_cmos[kYear] = encode(time.tm_year % 100);
  m_cmos[kCentury] = encode(time.tm_year / 100 + 19);
}

// The weekday follows from the date; the guest's own idea of it is not kept.
void Rtc::set_clock_from_registers(i64 into_second) {
  std::tm time{};
  time.tm_sec = decode(m_cmos[kSeconds]);
  time.tm_min = decode(m_cmos[kMinutes]);
  time.tm_hour = decode_hour(m_cmos[kHours]);
  time.tm_mday = decode(m_cmos[kDay]);
  time.tm_mon = decode(m_cmos[kMonth]) - 1;
  time.tm_year = (decode(m_cmos[kCentury]) - 19) * 100 + decode(m_cmos[kYear]);
  m_offset_ns = i64{timegm(&time)} * kSecond + into_second - m_now_ns();
  m_seen_second = floor_div(guest_now(), kSecond);
  m_seen_period = periods_by_now();
}

bool Rtc::alarm_matches(const std::tm& time) const {
  auto any = [&](u8 index) { return (m_cmos[index] & kAlarmAny) == kAlarmAny; };
  return (any(kSecondsAlarm) || decode(m_cmos[kSecondsAlarm]) == time.tm_sec) &&
         (any(kMinutesAlarm) || decode(m_cmos[kMinutesAlarm]) == time.tm_min) &&
         (any(kHoursAlarm) || decode_hour(m_cmos[kHoursAlarm]) == time.tm_hour);
}

// The periodic rate: 0 is off, 1 and 2 are 256 and 128 Hz, then 8192 Hz halving each step.
i64 Rtc::period_ns() const {
  unsigned rate = m_cmos[kA] & 15;
  if (rate == 0) return 0;
  if (rate < 3) rate += 7;
  return (kSecond << (rate - 1)) / 32768;
}

i64 Rtc::periods_by_now() const { return period_ns() ? floor_div(guest_now(), period_ns()) : 0; }

// Sets the flags of register C for all that happened since the last look. The alarm repeats daily, so one
// day's seconds are enough to look at.
void Rtc::collect_flags() {
  if (stopped()) return;
  if (!frozen()) collect_updates();
  const i64 periods = periods_by_now();
  if (periods != m_seen_period) m_cmos[kC] |= kBPeriodic;
  m_seen_period = periods;
}

void Rtc::collect_updates() {
  const i64 second = floor_div(guest_now(), kSecond);
  if (second != m_seen_second) m_cmos[kC] |= kBUpdate;
  for (i64 s = std::max(m_seen_second + 1, second - 86400); s <= second; ++s) {
    time_t seconds = s;
    std::tm time{};
    gmtime_r(&seconds, &time);
    if (!alarm_matches(time)) continue;
    m_cmos[kC] |= kBAlarm;
    break;
  }
  m_seen_second = second;
}

void Rtc::update_irq() {
  constexpr u8 kSources = kBPeriodic | kBAlarm | kBUpdate;
  bool level = m_cmos[kC] & m_cmos[kB] & kSources;
  if (level) m_cmos[kC] |= kCRequest;
  if (level == m_line) return;
  m_line = level;
  m_irq(level);
}

u8 Rtc::read_flags() {
  collect_flags();
  update_irq();
  u8 flags = m_cmos[kC];
  m_cmos[kC] = 0;
  update_irq();
  return flags;
}

u8 Rtc::read_register(u8 index) {
  refresh_time();
  switch (index) {
    case kA: {
      i64 now = guest_now();
      bool updating = !frozen() && now - floor_div(now, kSecond) * kSecond >= kSecond - kUpdateWindow;
      return static_cast<u8>((m_cmos[kA] & ~kAUpdating) | (updating ? kAUpdating : 0));
    }
    case kC:
      return read_flags();
    case kD:
      return kDValid;
    default:
      return m_cmos[index];
  }
}

void Rtc::write_control(u8 value) {
  bool was_frozen = frozen();
  refresh_time();
  collect_flags();
  if (value & kBFreeze) value &= static_cast<u8>(~kBUpdate);  // SET clears UIE
  m_cmos[kB] = value;
  if (was_frozen && !frozen()) set_clock_from_registers();
  update_irq();
}

void Rtc::write_divider(u8 value) {
  const bool was_stopped = stopped();
  refresh_time();
  collect_flags();
  m_cmos[kA] = value & static_cast<u8>(~kAUpdating);
  m_seen_period = periods_by_now();
  if (was_stopped && !frozen()) set_clock_from_registers(kFirstUpdate);
}

void Rtc::write_register(u8 index, u8 value) {
  bool is_time = index == kCentury ||
                 (index <= kYear && index != kSecondsAlarm && index != kMinutesAlarm && index != kHoursAlarm);
  switch (index) {
    case kA:
      return write_divider(value);
    case kB:
      return write_control(value);
    case kC:
    case kD:
      return;  // read-only
    default:
      refresh_time();
      collect_flags();
      m_cmos[index] = value;
      if (is_time && !frozen()) set_clock_from_registers();
  }
}

u8 Rtc::read_byte(u16 offset) {
  if (offset == 0) return 0xff;  // the index register is write-only
  u8 value;
  bool rearm;
  {
    std::lock_guard lock(m_mutex);
    value = read_register(m_index);
    rearm = m_index == kC;
  }
  if (rearm) m_deadline_changed();
  return value;
}

// Bit 7 of the index port is the NMI mask, which nothing here uses.
void Rtc::write_byte(u16 offset, u8 value) {
  {
    std::lock_guard lock(m_mutex);
    if (offset == 0) {
      m_index = value & 0x7f;
      return;
    }
    write_register(m_index, value);
  }
  m_deadline_changed();
}

std::optional<i64> Rtc::deadline() const {
  if (stopped() || m_line) return std::nullopt;  // a raised request stays until register C is read
  std::optional<i64> result;
  i64 now = guest_now();
  auto at = [&](i64 guest_time) { result = result ? std::min(*result, guest_time) : guest_time; };
  if (!frozen() && (m_cmos[kB] & (kBUpdate | kBAlarm))) at((floor_div(now, kSecond) + 1) * kSecond);
  if ((m_cmos[kB] & kBPeriodic) && period_ns()) at((floor_div(now, period_ns()) + 1) * period_ns());
  if (result) *result -= m_offset_ns;
  return result;
}

std::optional<i64> Rtc::next_deadline() {
  std::lock_guard lock(m_mutex);
  return deadline();
}

void Rtc::tick() {
  std::lock_guard lock(m_mutex);
  collect_flags();
  update_irq();
}

}  // namespace anykvm::devices
