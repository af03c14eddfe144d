#pragma once
// Bit arithmetic that the standard library lacks.
// Owner: nobody; pure functions. Any thread.

#include "base/types.h"

namespace anykvm {

constexpr u64 bit(unsigned n) { return u64{1} << n; }

// The `count` lowest bits set; `count` is 0 to 64.
constexpr u64 low_bits(unsigned count) { return count >= 64 ? ~u64{0} : bit(count) - 1; }

// Bits `first` to `last` (inclusive) of `value`, moved down to bit 0.
constexpr u64 bits(u64 value, unsigned last, unsigned first) { return (value >> first) & low_bits(last - first + 1); }

constexpr bool has_bit(u64 value, unsigned n) { return (value >> n) & 1; }

// `value`, whose sign bit is bit `width - 1`, widened to 64 bits.
constexpr u64 sign_extend(u64 value, unsigned width) {
  unsigned shift = 64 - width;
  return static_cast<u64>(static_cast<i64>(value << shift) >> shift);
}

constexpr u64 align_down(u64 value, u64 alignment) { return value & ~(alignment - 1); }
constexpr u64 align_up(u64 value, u64 alignment) { return align_down(value + alignment - 1, alignment); }

}  // namespace anykvm
