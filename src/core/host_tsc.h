#pragma once
// The host's time-stamp counter and its rate.
// Owner: the process. Any thread.

#include <x86intrin.h>

#include "base/types.h"

namespace anykvm::core {

inline u64 host_tsc() { return __rdtsc(); }

// Measured once, at the first call: from the kernel's own conversion factors where perf events are allowed,
// else against CLOCK_MONOTONIC for 10 ms.
u32 host_tsc_khz();

// Rates of guests' TSCs are below this: ioctls return them as a signed number of 32 bits.
inline constexpr u32 kTscKhzEnd = 0x7fffffff;

// value * multiplier / divisor without overflow in between.
constexpr u64 scale(u64 value, u64 multiplier, u64 divisor) {
  return static_cast<u64>(static_cast<unsigned __int128>(value) * multiplier / divisor);
}

// Host TSC ticks as nanoseconds.
inline u64 tsc_to_ns(u64 ticks) { return scale(ticks, 1'000'000, host_tsc_khz()); }

}  // namespace anykvm::core
