#pragma once
// How the arithmetic flags are had again where translated code has overwritten them: what wrote them is done
// once more (docs/decisions/translated-flags.md). Owner: the block, among its records. Immutable.

#include "x86/translate/insn.h"

namespace anykvm::x86 {

struct Context;

struct FlagRecovery {
  enum class Kind : u8 {
    // By the operands.
    kCompare,
    kTest,
    kDouble,
    kShiftLeft,
    kShiftRight,
    kShiftRightArithmetic,
    // By the result and the second operand.
    kAdd,
    kSubtract,
    kNegate,
    // By the result; the other flags come from `before`.
    kIncrement,
    kDecrement,
    kRotateLeft,
    kRotateRight,
  };

  // Operands are general registers, or values that were kept when their register got another.
  static constexpr u8 kFirstKept = 0x20;
  static constexpr unsigned kMostKept = 16;  // Context::kept

  Kind kind;
  u8 size;   // bytes of the operands
  u8 first;  // the first operand, or the result
  u8 other;  // the second operand, if it is not `immediate`
  i32 immediate;
  const FlagRecovery* before;

  // Context::flags_image, from the registers in CpuState.
  u16 image(const Context& context) const;
};

}  // namespace anykvm::x86
