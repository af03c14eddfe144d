#pragma once
// What performance counters can count (sys/pmu.h), and how many of each an instruction is. Owner: nobody;
// plain values. Any thread.

#include <array>
#include <bit>

#include "base/types.h"

namespace anykvm::x86 {

// Of memory accesses those that only read, only write, and do both; kAccesses is all of them.
enum class Counted : u8 { kInstructions, kBranches, kAccesses, kLoads, kStores, kUpdates, kCycles };
inline constexpr unsigned kCountedByCode = 6;  // the first ones; Context::events_left
inline constexpr unsigned kLookedAt = 3;       // the first ones, whose overflows code looks at
inline constexpr unsigned kCountedKinds = 7;

constexpr u8 bit_of(Counted what) { return static_cast<u8>(1u << static_cast<unsigned>(what)); }
constexpr u8 bits_of(auto... what) { return static_cast<u8>((0u | ... | bit_of(what))); }

struct EventCounts {
  std::array<u8, 8> of{};  // by Counted

  u8& operator[](Counted what) { return of[static_cast<unsigned>(what)]; }
  bool any() const { return std::bit_cast<u64>(of) != 0; }
};

}  // namespace anykvm::x86
