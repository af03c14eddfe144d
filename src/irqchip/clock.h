#pragma once
// Time as the timers see it, so that tests can bring their own.
// Owner: the implementer (one per vCPU for its LAPIC, one per VM for the PIT). Every function: any thread, no
// locks taken.

#include "base/types.h"

namespace anykvm::irqchip {

inline constexpr u64 kNever = ~u64{0};  // a deadline that does not come

class Clock {
 public:
  virtual ~Clock() = default;
  virtual u64 now_ns() = 0;     // CLOCK_MONOTONIC
  virtual u64 guest_tsc() = 0;  // the vCPU's TSC now; the PIT does not ask
  virtual u64 guest_tsc_to_ns(
      u64 tsc) = 0;  // when the TSC reaches `tsc`, rounded up; the past is clamped to 0
};

}  // namespace anykvm::irqchip
