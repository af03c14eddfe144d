#pragma once
// Instruction helpers: C++ functions that carry out one instruction for translated code. One file per family
// of the manual. Owner: nobody; functions over a Cpu. Only the vCPU's thread, inside Cpu::run().
//
// Contract. On entry all guest state is in cpu.state() (general registers and flags; vector state in
// state.xsave only for rows with kOpVector), and state.rip already points past the instruction (so relative
// branches add to it). A helper that returns a stop has changed nothing but A/D flags and what the manual
// says an interrupted REP keeps; the caller then sets RIP back to the instruction. A helper that changes the
// mode calls Cpu::mode_changed() itself.

#include "x86/cpu.h"
#include "x86/fault.h"
#include "x86/translate/insn.h"

namespace anykvm::x86 {

using Op = Guest<void> (*)(Cpu& cpu, const Insn& insn);

#define ANYKVM_HELPER(mnemonic, function, flags) Guest<void> function(Cpu& cpu, const Insn& insn);
#define ANYKVM_INLINE(mnemonic, rule, function, flags) ANYKVM_HELPER(mnemonic, function, flags)
#define ANYKVM_RULE(mnemonic, rule)
#define ANYKVM_UNDEFINED(mnemonic)
#include "x86/tables/instructions.def"
#undef ANYKVM_HELPER
#undef ANYKVM_INLINE
#undef ANYKVM_RULE
#undef ANYKVM_UNDEFINED

// Forms of mnemonics whose other forms are rules or run as themselves; translate/policy.cpp chooses.
Guest<void> op_far_jmp(Cpu& cpu, const Insn& insn);
Guest<void> op_far_call(Cpu& cpu, const Insn& insn);
Guest<void> op_far_ret(Cpu& cpu, const Insn& insn);
Guest<void> op_mov_from_cr(Cpu& cpu, const Insn& insn);
Guest<void> op_mov_to_cr(Cpu& cpu, const Insn& insn);
Guest<void> op_mov_from_dr(Cpu& cpu, const Insn& insn);
Guest<void> op_mov_to_dr(Cpu& cpu, const Insn& insn);
Guest<void> op_mov_from_segment(Cpu& cpu, const Insn& insn);
Guest<void> op_mov_to_segment(Cpu& cpu, const Insn& insn);
Guest<void> op_push_segment(Cpu& cpu, const Insn& insn);
Guest<void> op_pop_segment(Cpu& cpu, const Insn& insn);
Guest<void> op_pop_memory(Cpu& cpu, const Insn& insn);
Guest<void> op_bit_string(Cpu& cpu, const Insn& insn);  // BT, BTS, BTR, BTC with memory and a register offset
Guest<void> op_decimal(Cpu& cpu, const Insn& insn);     // DAA, DAS, AAA, AAS, AAM, AAD, SALC
Guest<void> op_gather_scatter(Cpu& cpu, const Insn& insn);  // VSIB memory operands

// --- Operand access shared by the helpers (ops/operands.cpp) ---

// Offset of the memory operand within its segment, truncated to the address size.
u64 effective_offset(const CpuState& state, const Insn& insn);
// Linear address of the memory operand after segment checks.
Guest<Gva> memory_operand(Cpu& cpu, const Insn& insn, unsigned size, Access access);
// That of two parts, which are aligned or not for themselves.
Guest<Gva> two_part_operand(Cpu& cpu, const Insn& insn, unsigned first, unsigned second);
// That of far JMP, far CALL and LDS, LES, LSS, LFS, LGS: an offset of the operand size, then a selector.
Guest<Gva> far_pointer_operand(Cpu& cpu, const Insn& insn);
// General register `number` as an operand of `size` bytes; 1 minds AH..BH (insn.rex). Writing 4 bytes clears
// the upper half (SDM 1 3.4.1.1).
u64 read_gpr(const CpuState& state, const Insn& insn, u8 number, unsigned size);
void write_gpr(CpuState& state, const Insn& insn, u8 number, unsigned size, u64 value);
// The ModRM r/m operand, register or memory, zero-extended.
Guest<u64> read_rm(Cpu& cpu, const Insn& insn, unsigned size);
Guest<void> write_rm(Cpu& cpu, const Insn& insn, unsigned size, u64 value);
// Stack pushes and pops of `size` bytes by the current stack size. push_value checks and writes, then moves
// RSP; a second push that faults leaves the first visible, so probe first where the manual wants all or
// nothing.
Guest<void> push_value(Cpu& cpu, u64 value, unsigned size);
Guest<u64> pop_value(Cpu& cpu, unsigned size);
// Bytes of the current stack pointer: 2, 4 or 8 (SS.B, 64-bit mode).
unsigned stack_width(const CpuState& state);

}  // namespace anykvm::x86
