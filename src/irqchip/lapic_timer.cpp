#include "irqchip/lapic_timer.h"

#include <algorithm>

#include "base/bits.h"

namespace anykvm::irqchip {

namespace {

// A guest with a shorter period would do nothing but take timer interrupts. KVM has the same floor.
constexpr u64 kShortestPeriodNs = 200'000;

// Divide configuration register, SDM 3A figure 10-10: bits 3, 1 and 0 count up from divide by 2, and 111 is
// divide by 1.
u32 divisor_of(u32 divide_register) {
  u32 encoded = (divide_register & 3) | ((divide_register & 8) >> 1);
  return 1u << ((encoded + 1) & 7);
}

}  // namespace

void LapicTimer::disarm_locked() {
  m_initial = 0;
  m_period_ns = 0;
  m_tsc_deadline = 0;
  m_deadline.store(kNever, std::memory_order_release);
}

void LapicTimer::reset() {
  std::lock_guard lock(m_mutex);
  m_mode = Mode::kOneShot;
  m_divisor = divisor_of(0) * m_bus_cycle_ns;
  disarm_locked();
}

void LapicTimer::set_mode(Mode mode) {
  std::lock_guard lock(m_mutex);
  if ((mode == Mode::kTscDeadline) != (m_mode == Mode::kTscDeadline)) disarm_locked();
  m_mode = mode;
}

void LapicTimer::set_divide(u32 divide_register) {
  std::lock_guard lock(m_mutex);
  u64 divisor = divisor_of(divide_register) * m_bus_cycle_ns;
  if (divisor == m_divisor) return;
  u64 deadline = deadline_ns();
  u64 ticks_to_go = 0;
  if (m_mode != Mode::kTscDeadline && deadline != kNever) {
    u64 now = m_clock.now_ns();
    ticks_to_go = deadline > now ? (deadline - now) / m_divisor : 0;
  }
  m_divisor = divisor;
  if (m_mode != Mode::kTscDeadline && deadline != kNever) start_locked(ticks_to_go);
}

void LapicTimer::start_locked(u64 ticks_to_go) {
  m_period_ns = std::max(u64{m_initial} * m_divisor, kShortestPeriodNs);
  m_deadline.store(m_clock.now_ns() + ticks_to_go * m_divisor, std::memory_order_release);
}

void LapicTimer::start(u32 initial_count) {
  std::lock_guard lock(m_mutex);
  if (m_mode == Mode::kTscDeadline) return;
  disarm_locked();
  m_initial = initial_count;
  if (initial_count) start_locked(initial_count);
}

void LapicTimer::restore(u32 initial_count, u32 current) {
  std::lock_guard lock(m_mutex);
  if (m_mode == Mode::kTscDeadline) return;
  disarm_locked();
  m_initial = initial_count;
  // A count of 0 is a timer that fires now. QEMU restores no other, whatever it has saved, so a one-shot timer
  // that was running would be lost; KVM does the same.
  if (initial_count) start_locked(std::min(current, initial_count));
}

void LapicTimer::arm_tsc_deadline(u64 tsc) {
  std::lock_guard lock(m_mutex);
  if (m_mode != Mode::kTscDeadline) return;
  m_tsc_deadline = tsc;
  m_deadline.store(tsc ? m_clock.guest_tsc_to_ns(tsc) : kNever, std::memory_order_release);
}

void LapicTimer::tsc_changed() {
  std::lock_guard lock(m_mutex);
  if (m_mode == Mode::kTscDeadline && m_tsc_deadline)
    m_deadline.store(m_clock.guest_tsc_to_ns(m_tsc_deadline), std::memory_order_release);
}

u32 LapicTimer::current_count() {
  std::lock_guard lock(m_mutex);
  u64 deadline = deadline_ns();
  if (m_mode == Mode::kTscDeadline || deadline == kNever) return 0;
  u64 now = m_clock.now_ns();
  u64 left = 0;
  if (deadline > now)
    left = deadline - now;
  else if (m_mode == Mode::kPeriodic)
    left = m_period_ns - (now - deadline) % m_period_ns;
  return static_cast<u32>(std::min<u64>(left / m_divisor, m_initial));
}

u32 LapicTimer::initial_count() {
  std::lock_guard lock(m_mutex);
  return m_initial;
}

u64 LapicTimer::tsc_deadline() {
  std::lock_guard lock(m_mutex);
  return m_tsc_deadline;
}

bool LapicTimer::expire(u64 now_ns) {
  if (deadline_ns() > now_ns) return false;
  std::lock_guard lock(m_mutex);
  u64 deadline = deadline_ns();
  if (deadline > now_ns) return false;
  if (m_mode == Mode::kPeriodic) {
    u64 periods = (now_ns - deadline) / m_period_ns + 1;
    m_deadline.store(deadline + periods * m_period_ns, std::memory_order_release);
    return true;
  }
  m_tsc_deadline = 0;
  m_deadline.store(kNever, std::memory_order_release);
  return true;
}

}  // namespace anykvm::irqchip
