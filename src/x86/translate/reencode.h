#pragma once
// Re-emission of an instruction as itself: the guest's bytes with other register numbers and a plain
// [register] or [register + register + displacement] operand. Working on the bytes keeps every encoding
// detail (EVEX masks, rounding, prefixes) without knowing it. Owner: nobody; pure functions. Any thread. SDM
// 2A chapter 2.

#include "base/types.h"
#include "x86/translate/decode.h"

namespace anykvm::x86 {

// Host register numbers for the fields of the instruction. Only those that Decoded marks as general registers
// are used.
struct HostFields {
  u8 reg = 0, rm = 0, vvvv = 0;
  // For a memory operand. Without an index, the base is not RSP, RBP, R12 or R13, and there is no
  // displacement.
  u8 memory_base = 0;
  u8 memory_index = kNoRegister;  // not RSP
  i32 displacement = 0;

  bool indexed() const { return memory_index != kNoRegister; }
};

// Writes the host's form of `decoded` to `out` and returns its length (at most 28).
unsigned reencode(const Decoded& decoded, const HostFields& fields, u8* out);

// A register number above 7 or a low-byte register 4-7 needs a prefix that makes AH..BH unreachable.
inline bool needs_extension(u8 host_register) { return host_register >= 8; }

}  // namespace anykvm::x86
