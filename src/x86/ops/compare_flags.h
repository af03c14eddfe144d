#pragma once
// The arithmetic flags of CMP.
// Owner: nobody; pure functions. Any thread.

#include <bit>

#include "x86/state/bits.h"

namespace anykvm::x86 {

// Flags after `left - right` of operands of `size` bytes (SDM 1 3.4.3.1).
constexpr u64 compare_flags(u64 left, u64 right, unsigned size) {
  u64 mask = low_bits(size * 8);
  left &= mask, right &= mask;
  u64 difference = (left - right) & mask;
  unsigned sign = size * 8 - 1;
  u64 flags = 0;
  if (left < right) flags |= kFlagCf;
  if (std::popcount(difference & 0xff) % 2 == 0) flags |= kFlagPf;
  if ((left ^ right ^ difference) & 0x10) flags |= kFlagAf;
  if (difference == 0) flags |= kFlagZf;
  if (has_bit(difference, sign)) flags |= kFlagSf;
  if (has_bit((left ^ right) & (left ^ difference), sign)) flags |= kFlagOf;
  return flags;
}

}  // namespace anykvm::x86
