#pragma once
// Guest bytes to Decoded: the instruction for rules and helpers, and the facts of its encoding for
// re-emission. Owner: nobody; a pure function (Zydis underneath). Any thread.

#include "base/types.h"
#include "x86/translate/insn.h"

namespace anykvm::x86 {

// Which architectural state an instruction needs enabled (SDM 1 and 2, exception classes).
enum class VectorClass : u8 { kNone, kX87, kMmx, kSse, kAvx, kAvx512 };

enum class Encoding : u8 { kLegacy, k3dnow, kXop, kVex, kEvex };

struct Decoded {
  Insn insn;
  u16 category = 0;  // ZydisInstructionCategory
  Encoding encoding = Encoding::kLegacy;
  VectorClass vector = VectorClass::kNone;

  // Where the parts stand in insn.bytes (0: absent, but for opcode_at of one-byte instructions).
  u8 prefix_at = 0;  // VEX, EVEX or XOP prefix
  u8 opcode_at = 0;  // last opcode byte
  u8 modrm_at = 0;
  u8 immediate_at = 0, immediate_bytes = 0;

  // Which encoded fields name general registers, and which of those the instruction writes.
  bool reg_is_gpr = false, rm_is_gpr = false, vvvv_is_gpr = false, opcode_is_gpr = false;
  bool reg_written = false, rm_written = false, vvvv_written = false, opcode_written = false;
  u8 vvvv = 0;
  bool high_byte = false;                  // names AH, CH, DH or BH: no REX prefix possible
  bool reg_high = false, rm_high = false;  // the field is one of those
  u16 gprs = 0;  // every general register it names or uses implicitly, but for address registers
  u16 gprs_written = 0;
  u16 gprs_replaced = 0;  // those whose old value has no part in the result
  bool memory_read = false, memory_write = false;
  // How many accesses that only read, only write, and do both (Counted); of a string instruction in each
  // iteration.
  u8 loads = 0, stores = 0, updates = 0;
  bool vsib = false;
  bool hidden_memory = false;  // memory accessed beside what ModRM addresses: never to be emitted as itself
  // EVEX or VEX masks: memory elements whose mask bit is clear must not fault.
  bool masked_memory = false;
  u8 mask_element = 0;          // bytes of one memory element
  u8 mask_lanes = 0;            // mask bits; more than memory elements if those are broadcast
  bool mask_packed = false;     // compress and expand: active elements stand side by side in memory
  bool mask_is_vector = false;  // mask_register is a vector register (sign bits), else an opmask register
  u8 mask_register = 0;
  bool mandatory_66 = false;  // 66 belongs to the opcode, it is no operand-size prefix
  bool operand_size_matters = false;

  u32 flags_read = 0;     // RFLAGS bits
  u32 flags_killed = 0;   // written whatever the operands are
  u32 flags_written = 0;  // written perhaps
};

// Does it access memory atomically? XCHG needs no prefix (SDM 3A 8.1.2.2).
bool is_locked(const Decoded& d);

// kTooLong: more than 15 bytes, which is #GP whatever they are (SDM 2A 2.3.11).
enum class DecodeStatus : u8 { kOk, kTruncated, kInvalid, kTooLong };

// Decodes one instruction from `size` bytes (at most 15 are looked at). `rip` is its address, for
// RIP-relative operands. `stack_bytes` is the width of the stack pointer in use.
DecodeStatus decode(const u8* bytes, unsigned size, unsigned code_bits, unsigned stack_bytes, u64 rip,
                    Decoded* out);

}  // namespace anykvm::x86
