#pragma once
// The registers of the performance counters (SDM 3B 19.2, APM 2 13.2). Both vendors' names lead to the same
// ones. Owner: CpuState. Only the vCPU's thread; the counters are those of now after Pmu::collect().

#include <array>

#include "base/types.h"

namespace anykvm::x86 {

inline constexpr unsigned kGeneralCounters = 6, kFixedCounters = 3;

// What IA32_PERF_CAPABILITIES may hold: writes of all of a counter's bits (SDM 3B 19.2.8).
inline constexpr u64 kPerfCapabilities = u64{1} << 13;

struct PmuState {
  std::array<u64, kGeneralCounters> counters{}, selects{};
  std::array<u64, kFixedCounters> fixed{};
  u64 fixed_control = 0, global_control = 0, global_status = 0;
  u64 capabilities = kPerfCapabilities;  // IA32_PERF_CAPABILITIES
};

}  // namespace anykvm::x86
