#pragma once
// One decoded guest instruction, in the form that rules and helpers work on.
// Owner: the block that holds it (helpers get a reference that lives as long as the block). Immutable once
// decoded.

#include "base/types.h"
#include "x86/state/cpu_state.h"

namespace anykvm::x86 {

inline constexpr u8 kNoRegister = 0xff;
inline constexpr u8 kRipBase = 0xfe;

// A memory operand: segment:[base + index * scale + displacement], wrapped to `address_size` bytes.
struct MemoryOperand {
  SegmentIndex segment = kDs;  // after overrides and the SS default of RSP/RBP bases
  u8 base = kNoRegister;       // Gpr, kRipBase or kNoRegister
  u8 index = kNoRegister;
  u8 scale = 1;
  bool rip_relative = false;  // `displacement` is what that makes of it at the RIP that it was decoded for
  u16 size = 0;  // bytes that the instruction accesses, 0 if none (LEA, INVLPG, XSAVE's is computed)
  i64 displacement = 0;
};

struct Insn {
  u16 mnemonic = 0;     // ZydisMnemonic
  u8 length = 0;        // bytes, 1 to 15
  u8 code_bits = 64;    // 16, 32 or 64
  u8 operand_size = 4;  // effective operand size in bytes: 1 for byte forms, else 2, 4 or 8
  u8 address_size = 8;  // bytes: 2, 4 or 8
  u8 stack_size = 8;    // bytes of the stack pointer in use: 2 (SS.B=0), 4 or 8
  u8 opcode_map = 0;    // 0: one byte, 1: 0F, 2: 0F38, 3: 0F3A (VEX/EVEX maps likewise)
  u8 opcode = 0;
  bool lock = false, rep = false, repne = false;
  bool operand_size_prefix = false;
  bool rex_w = false;
  bool has_modrm = false, has_memory = false;
  u8 reg = 0;  // ModRM.reg with REX.R (also the control, debug or segment register number)
  u8 rm = 0;   // ModRM.rm with REX.B if the operand is a register; for opcodes with a register in their low
               // three bits (PUSH r, BSWAP ...) that register with REX.B
  bool rex = false;  // any REX prefix: byte registers 4-7 are SPL, BPL, SIL, DIL instead of AH, CH, DH, BH
  MemoryOperand memory{};
  u64 immediate = 0;   // sign-extended where the instruction does so; relative targets: the displacement;
                       // far pointers: the offset; moffs: see memory.displacement
  u64 immediate2 = 0;  // ENTER's level, far pointers' selector
  u8 bytes[15] = {};   // the instruction itself
};

}  // namespace anykvm::x86
