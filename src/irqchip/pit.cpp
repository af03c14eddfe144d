#include "irqchip/pit.h"

#include <algorithm>
#include <utility>

#include "base/bits.h"

namespace anykvm::irqchip {

namespace {

constexpr u64 kNsPerSecond = 1'000'000'000;
constexpr unsigned kSpeakerCounter = 2;
constexpr u8 kModeUnset = 0xff;  // KVM's mode of a counter that was never programmed
// A guest that sets a shorter period than this gets fewer ticks, or the host would do nothing else.
constexpr u64 kShortestPeriodNs = 200'000;
constexpr u64 kRefreshHalfNs = 15'085;  // DRAM refresh request, port 61H bit 4

// How the bytes of a count follow each other; numbers of the KVM ABI (read_state, write_state,
// count_latched).
enum Access : u8 { kNone = 0, kLow = 1, kHigh = 2, kWordLow = 3, kWordHigh = 4 };

u64 clocks_of(u64 ns) { return static_cast<u64>(static_cast<unsigned __int128>(ns) * kPitHz / kNsPerSecond); }

u64 ns_of(u64 clocks) {  // rounded up: at that time the clock has ticked
  return static_cast<u64>((static_cast<unsigned __int128>(clocks) * kNsPerSecond + kPitHz - 1) / kPitHz);
}

bool repeats(u8 mode) { return mode == 2 || mode == 3; }
bool waits_for_gate_edge(u8 mode) { return mode == 1 || mode == 5; }
bool goes_on_with_gate(u8 mode) { return mode == 0 || mode == 4; }

// Mode 3 counts down by two, once for each half of the period; the count of an odd period is even, too, and
// its first half has one clock more, at 0.
u64 square_wave_count(u64 period, u64 clocks) {
  const u64 first_half = (period + 1) / 2;
  return (period & ~u64{1}) - 2 * (clocks < first_half ? clocks : clocks - first_half);
}

u32 from_bcd(u32 v) {
  return (v & 0xf) + (v >> 4 & 0xf) * 10 + (v >> 8 & 0xf) * 100 + (v >> 12 & 0xf) * 1000;
}
u32 to_bcd(u32 v) { return v % 10 | v / 10 % 10 << 4 | v / 100 % 10 << 8 | v / 1000 % 10 << 12; }

}  // namespace

Pit::Pit(Clock& clock, Callbacks callbacks, bool speaker)
    : m_clock(clock), m_callbacks(std::move(callbacks)), m_speaker(speaker) {
  reset();
}

void Pit::reset() {
  std::lock_guard lock(m_mutex);
  for (unsigned i = 0; i < 3; i++) {
    m_channels[i] = {};
    m_channels[i].mode = kModeUnset;
    m_channels[i].count = 0x10000;
    m_channels[i].gate = i != kSpeakerCounter;
    m_running[i] = {};
  }
  m_flags = 0;
  forget_ticks();
  m_deadline.store(kNever, std::memory_order_release);
}

bool Pit::owns_port(u16 port) const { return (port & ~3) == 0x40 || (m_speaker && port == 0x61); }

// --- the counters as functions of time ---

bool Pit::is_running(unsigned index) const { return m_running[index].loaded && m_running[index].triggered; }

bool Pit::is_frozen(unsigned index) const {
  return !m_channels[index].gate && !waits_for_gate_edge(m_channels[index].mode);
}

u64 Pit::elapsed_ns(unsigned index) {
  if (is_frozen(index)) return m_running[index].frozen_ns;
  return m_clock.now_ns() - static_cast<u64>(m_channels[index].count_load_time);
}

u64 Pit::elapsed_clocks(unsigned index) { return clocks_of(elapsed_ns(index)); }

u32 Pit::count(unsigned index) {
  const Channel& channel = m_channels[index];
  u64 clocks = is_running(index) ? elapsed_clocks(index) : 0;
  u64 modulus = channel.bcd ? 10000 : 0x10000;
  u64 value;
  if (channel.mode == 3)
    value = square_wave_count(channel.count, clocks % channel.count);
  else if (channel.mode == 2)
    value = channel.count - clocks % channel.count;
  else
    value = channel.count + modulus - clocks % modulus;  // runs on below 0
  value %= modulus;
  return static_cast<u32>(channel.bcd ? to_bcd(static_cast<u32>(value)) : value);
}

bool Pit::output(unsigned index) {
  const Channel& channel = m_channels[index];
  if (!is_running(index)) return channel.mode != 0;
  if (!channel.gate && repeats(channel.mode)) return true;
  u64 clocks = elapsed_clocks(index);
  switch (channel.mode) {
    case 0:
    case 1:
      return clocks >= channel.count;
    case 2:
      return clocks % channel.count != channel.count - 1;
    case 3:
      return clocks % channel.count < (channel.count + 1) / 2;
    default:  // a strobe of one clock
      return clocks != channel.count;
  }
}

void Pit::update_deadline(u64 after_ns) {
  const Channel& channel = m_channels[0];
  u64 deadline = kNever;
  if (is_running(0) && !(m_flags & KVM_PIT_FLAGS_HPET_LEGACY)) {
    u64 loaded = static_cast<u64>(channel.count_load_time);
    u64 edge = channel.count;
    if (repeats(channel.mode))
      edge *= clocks_of(after_ns - loaded) / channel.count + 1;
    else if (channel.mode >= 4)
      edge += 1;
    deadline = loaded + ns_of(edge);
    if (deadline <= after_ns && !repeats(channel.mode)) deadline = kNever;
    if (repeats(channel.mode) && ns_of(channel.count) < kShortestPeriodNs)
      deadline = after_ns + kShortestPeriodNs;
  }
  m_deadline.store(deadline, std::memory_order_release);
}

// --- ticks ---

void Pit::forget_ticks() {
  m_pending = 0;
  m_acknowledged = true;
}

void Pit::expire(u64 now_ns) {
  {
    std::lock_guard lock(m_mutex);
    u64 deadline = next_deadline_ns();
    if (deadline > now_ns) return;
    u64 loaded = static_cast<u64>(m_channels[0].count_load_time);
    u64 ticks = 1;
    if (repeats(m_channels[0].mode))
      ticks += clocks_of(now_ns - loaded) / m_channels[0].count -
               clocks_of(deadline - loaded) / m_channels[0].count;
    update_deadline(now_ns);
    if (m_reinject) {
      m_pending += ticks;
      if (!m_acknowledged) return;
      m_acknowledged = false;
    }
  }
  fire();
}

void Pit::fire() {
  if (m_callbacks.irq0()) return;
  std::lock_guard lock(m_mutex);  // masked: nobody will acknowledge it
  forget_ticks();
}

void Pit::irq0_acknowledged() {
  {
    std::lock_guard lock(m_mutex);
    m_acknowledged = true;
    if (m_pending) m_pending--;
    if (!m_reinject || !m_pending) return;
    m_acknowledged = false;
  }
  fire();
}

void Pit::irq0_unmasked() {
  std::lock_guard lock(m_mutex);
  forget_ticks();
}

void Pit::set_reinject(bool reinject) {
  std::lock_guard lock(m_mutex);
  m_reinject = reinject;
  forget_ticks();
}

// --- ports (8254 data sheet) ---

u8 Pit::read(u16 port) {
  std::lock_guard lock(m_mutex);
  if (port == 0x61) return read_port_61();
  return port == 0x43 ? 0xff : read_counter(port & 3);
}

void Pit::write(u16 port, u8 value) {
  u64 before = next_deadline_ns();
  {
    std::lock_guard lock(m_mutex);
    if (port == 0x61)
      write_port_61(value);
    else if (port == 0x43)
      write_control(value);
    else
      write_counter(port & 3, value);
  }
  if (next_deadline_ns() != before) m_callbacks.deadline_changed();
}

void Pit::write_control(u8 value) {
  unsigned index = value >> 6;
  if (index == 3) return read_back(value);
  u8 access = static_cast<u8>(bits(value, 5, 4));
  if (access == kNone) return latch_count(index);
  Channel& channel = m_channels[index];
  channel.rw_mode = channel.read_state = channel.write_state = access;
  channel.count_latched = channel.status_latched = 0;
  u8 mode = static_cast<u8>(bits(value, 3, 1));
  channel.mode = mode > 5 ? mode & 3 : mode;  // bit 2 does not matter for modes 2 and 3
  channel.bcd = value & 1;
  m_running[index] = {};
  if (index == 0) update_deadline(m_clock.now_ns());
}

void Pit::read_back(u8 value) {
  for (unsigned index = 0; index < 3; index++) {
    if (!has_bit(value, index + 1)) continue;
    if (!has_bit(value, 5)) latch_count(index);
    if (!has_bit(value, 4)) latch_status(index);
  }
}

// A second latch command before the first was read does nothing.
void Pit::latch_count(unsigned index) {
  Channel& channel = m_channels[index];
  if (channel.count_latched) return;
  channel.latched_count = static_cast<u16>(count(index));
  channel.count_latched = channel.rw_mode;
}

u8 Pit::status(unsigned index) {
  const Channel& channel = m_channels[index];
  u8 mode = channel.mode & 7;
  return static_cast<u8>(output(index) << 7 | !m_running[index].loaded << 6 | channel.rw_mode << 4 |
                         mode << 1 | channel.bcd);
}

void Pit::latch_status(unsigned index) {
  Channel& channel = m_channels[index];
  if (channel.status_latched) return;
  channel.status = status(index);
  channel.status_latched = 1;
}

u8 Pit::read_counter(unsigned index) {
  Channel& channel = m_channels[index];
  if (channel.status_latched) {
    channel.status_latched = 0;
    return channel.status;
  }
  bool latched = channel.count_latched != kNone;
  u8& state = latched ? channel.count_latched : channel.read_state;
  u32 value = latched ? channel.latched_count : count(index);
  bool high = state == kHigh || state == kWordHigh;
  if (state == kWordLow)
    state = kWordHigh;
  else if (latched)
    state = kNone;
  else if (state == kWordHigh)
    state = kWordLow;
  return static_cast<u8>(high ? value >> 8 : value);
}

void Pit::write_counter(unsigned index, u8 value) {
  Channel& channel = m_channels[index];
  switch (channel.write_state) {
    case kLow:
      return load_count(index, value);
    case kHigh:
      return load_count(index, u32{value} << 8);
    case kWordLow:
      channel.write_latch = value;
      channel.write_state = kWordHigh;
      return;
    case kWordHigh:
      channel.write_state = kWordLow;
      return load_count(index, channel.write_latch | u32{value} << 8);
  }
}

void Pit::load_count(unsigned index, u32 value) {
  Channel& channel = m_channels[index];
  Running& running = m_running[index];
  u32 count = channel.bcd ? from_bcd(value) : value;
  channel.count = count ? count : channel.bcd ? 10000 : 0x10000;
  // Modes 1 and 5 take the new count at the next rising edge of the gate; one under way goes on.
  if (!waits_for_gate_edge(channel.mode)) {
    channel.count_load_time = static_cast<i64>(m_clock.now_ns());
    running.triggered = true;
    running.frozen_ns = 0;
  }
  running.loaded = true;
  if (index != 0) return;
  forget_ticks();
  update_deadline(m_clock.now_ns());
}

void Pit::set_gate(unsigned index, bool level) {
  Channel& channel = m_channels[index];
  Running& running = m_running[index];
  if (channel.gate == level) return;
  u64 counted = elapsed_ns(index);
  channel.gate = level;
  if (!level) {
    running.frozen_ns = counted;
  } else if (goes_on_with_gate(channel.mode)) {
    channel.count_load_time = static_cast<i64>(m_clock.now_ns() - counted);
  } else {
    channel.count_load_time = static_cast<i64>(m_clock.now_ns());
    running.triggered = true;
  }
}

u8 Pit::read_port_61() {
  bool refresh = m_clock.now_ns() / kRefreshHalfNs & 1;
  bool data = m_flags & KVM_PIT_FLAGS_SPEAKER_DATA_ON;
  return static_cast<u8>(m_channels[kSpeakerCounter].gate | data << 1 | refresh << 4 |
                         output(kSpeakerCounter) << 5);
}

void Pit::write_port_61(u8 value) {
  m_flags =
      (m_flags & ~KVM_PIT_FLAGS_SPEAKER_DATA_ON) | (has_bit(value, 1) ? KVM_PIT_FLAGS_SPEAKER_DATA_ON : 0);
  set_gate(kSpeakerCounter, value & 1);
}

// --- state ---

kvm_pit_state2 Pit::state() {
  std::lock_guard lock(m_mutex);
  kvm_pit_state2 state{};
  for (unsigned i = 0; i < 3; i++) {
    state.channels[i] = m_channels[i];
    if (is_frozen(i))
      state.channels[i].count_load_time = static_cast<i64>(m_clock.now_ns() - m_running[i].frozen_ns);
  }
  state.flags = m_flags;
  return state;
}

// The client may give anything: whatever indexes or divides is brought into range.
void Pit::restore_channel(unsigned index, const Channel& state) {
  u64 now = m_clock.now_ns();
  Channel& channel = m_channels[index];
  channel = state;
  channel.mode = state.mode > 5 ? kModeUnset : state.mode;
  channel.count = state.count == 0 || state.count > 0x10000 ? 0x10000 : state.count;
  channel.gate = index == kSpeakerCounter ? state.gate != 0 : 1;
  channel.bcd = state.bcd != 0;
  channel.rw_mode = state.rw_mode & 3;
  channel.count_latched = std::min<u8>(state.count_latched, kWordHigh);
  if (state.count_load_time < 0 || static_cast<u64>(state.count_load_time) > now)
    channel.count_load_time = static_cast<i64>(now);
  bool programmed = channel.mode != kModeUnset;
  m_running[index] = {programmed, programmed, now - static_cast<u64>(channel.count_load_time)};
}

void Pit::set_state(const kvm_pit_state2& state) {
  {
    std::lock_guard lock(m_mutex);
    for (unsigned i = 0; i < 3; i++) restore_channel(i, state.channels[i]);
    m_flags = state.flags & (KVM_PIT_FLAGS_HPET_LEGACY | KVM_PIT_FLAGS_SPEAKER_DATA_ON);
    // As KVM does: counter 0 starts a new period, since the load time was another clock's.
    m_channels[0].count_load_time = static_cast<i64>(m_clock.now_ns());
    forget_ticks();
    update_deadline(m_clock.now_ns());
  }
  m_callbacks.deadline_changed();
}

}  // namespace anykvm::irqchip
