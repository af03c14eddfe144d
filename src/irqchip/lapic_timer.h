#pragma once
// The local APIC's timer: one-shot, periodic and TSC-deadline (SDM 3A 10.5.4), without its LVT entry's
// vector. Owner: Lapic. Any thread: the state is under m_mutex (a leaf lock), the deadline can be read
// without it.

#include <atomic>
#include <mutex>

#include "base/types.h"
#include "irqchip/clock.h"

namespace anykvm::irqchip {

class LapicTimer {
 public:
  enum class Mode : u8 { kOneShot = 0, kPeriodic = 1, kTscDeadline = 2, kReserved = 3 };

  explicit LapicTimer(Clock& clock) : m_clock(clock) {}

  void reset();
  // A change to or from TSC-deadline mode disarms (SDM 3A 10.5.4.1).
  void set_mode(Mode mode);
  void set_divide(u32 divide_register);
  // Length of a bus cycle; before anything else is asked of the timer.
  void set_bus_cycle(u64 ns) { m_bus_cycle_ns = ns; }
  // Writes the initial count and starts; 0 stops. Ignored in TSC-deadline mode.
  void start(u32 initial_count);
  // As start(), but the count down has come to `current` already (KVM_SET_LAPIC).
  void restore(u32 initial_count, u32 current);
  // 0 disarms. Ignored in other modes.
  void arm_tsc_deadline(u64 tsc);
  // The guest's TSC was set or scaled: the armed value means another moment.
  void tsc_changed();

  u32 current_count();
  u32 initial_count();
  u64 tsc_deadline();

  u64 deadline_ns() const { return m_deadline.load(std::memory_order_acquire); }  // kNever: none
  // Did the timer fire at or before `now_ns`? Ticks of a periodic timer that were missed count as one.
  bool expire(u64 now_ns);

 private:
  void start_locked(u64 ticks_to_go);
  void disarm_locked();

  Clock& m_clock;
  std::mutex m_mutex;  // guards everything below; m_deadline is written under it
  Mode m_mode = Mode::kOneShot;
  u64 m_bus_cycle_ns = 1;  // the rate that KVM has
  u64 m_divisor = 2;       // ns per count
  u32 m_initial = 0;
  u64 m_period_ns = 0;
  u64 m_tsc_deadline = 0;
  std::atomic<u64> m_deadline{kNever};
};

}  // namespace anykvm::irqchip
