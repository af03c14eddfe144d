// Near jumps, calls, returns, conditional branches and loops.
#include <Zydis/Zydis.h>

#include "x86/translate/rules_families.h"

namespace anykvm::x86 {

using namespace asmjit::x86;  // register names
using host::kAddress;
using host::kScratch;

namespace {

u64 relative_target(Emitter& e, const Insn& insn) {
  return e.wrap_rip(e.rip() + insn.length + insn.immediate, insn.operand_size);
}

Mem at_address(unsigned size) { return ptr(kAddress, 0, size); }

// R10 = the bytes at `from`, zero-extended.
void load_address(Emitter& e, const Mem& from) {
  e.record_fault_site();
  switch (from.size()) {
    case 2:
      e.a.movzx(kAddress.r32(), from);
      break;
    case 4:
      e.a.mov(kAddress.r32(), from);
      break;
    default:
      e.a.mov(kAddress, from);
      break;
  }
}

// R10 = the operand of an indirect call or jump, cut to the operand size.
void load_target(Emitter& e, const Decoded& d, bool last) {
  if (d.insn.has_memory) {
    e.effective_offset(d.insn);
    e.open_access(d.insn.memory.segment, d.insn.operand_size, true, false, true, last);
    load_address(e, at_address(d.insn.operand_size));
    return;
  }
  e.load_gpr(kAddress, d.insn.rm);
  if (d.insn.operand_size == 4) e.a.mov(kAddress.r32(), kAddress.r32());
  if (d.insn.operand_size == 2) e.a.movzx(kAddress.r32(), kAddress.r16());
}

void push_return_address(Emitter& e, unsigned size, bool first) {
  const auto stack = e.open_stack(-static_cast<i32>(size), size, false, true, first);
  e.load_rip(stack.spare, e.next_rip());
  const Gp value = size == 2 ? Gp(stack.spare.r16()) : size == 4 ? Gp(stack.spare.r32()) : stack.spare;
  e.record_fault_site();
  e.a.mov(stack.operand, value);
  e.close_access();
  e.move_rsp(-static_cast<i32>(size));
}

CondCode condition_of(const Insn& insn) {
  // Host conditions in the order of the encodings, SDM 1 appendix B.
  static constexpr CondCode kConditions[] = {CondCode::kO, CondCode::kNO, CondCode::kB,  CondCode::kAE,
                                             CondCode::kE, CondCode::kNE, CondCode::kBE, CondCode::kA,
                                             CondCode::kS, CondCode::kNS, CondCode::kP,  CondCode::kNP,
                                             CondCode::kL, CondCode::kGE, CondCode::kLE, CondCode::kG};
  return kConditions[insn.opcode & 15];
}

// Jumps to `zero` if RCX, cut to `address_size`, is 0. RCX is in R10 on both ways.
void branch_if_count_zero(Emitter& e, unsigned address_size, asmjit::Label zero) {
  e.a.mov(kAddress, rcx);
  if (address_size == 4) e.a.mov(ecx, ecx);
  if (address_size == 2) e.a.movzx(ecx, cx);
  e.a.jecxz(rcx, zero);
}

void decrement_count(Emitter& e, unsigned address_size) {
  switch (address_size) {
    case 8:
      e.a.lea(rcx, ptr(rcx, -1));
      break;
    case 4:
      e.a.lea(ecx, ptr(rcx, -1));
      break;
    default:
      e.a.lea(kAddress.r32(), ptr(rcx, -1));
      e.a.mov(cx, kAddress.r16());
      break;
  }
}

}  // namespace

void emit_jmp(Emitter& e, const Decoded& d) {
  if (d.insn.opcode != 0xff) {
    e.retire();
    e.jump_to(relative_target(e, d.insn));
    return;
  }
  load_target(e, d, true);
  e.retire();
  e.jump_to_address(0);
}

void emit_call(Emitter& e, const Decoded& d) {
  unsigned size = d.insn.operand_size;
  if (d.insn.opcode == 0xe8) {
    push_return_address(e, size, true);
    e.retire();
    e.jump_to(relative_target(e, d.insn));
    return;
  }
  load_target(e, d, false);
  e.a.mov(ANYKVM_GS(value), kAddress);
  push_return_address(e, size, !d.insn.has_memory);
  e.retire();
  e.a.mov(kAddress, ANYKVM_GS(value));
  e.jump_to_address(-static_cast<i32>(size));
}

void emit_ret(Emitter& e, const Decoded& d) {
  unsigned size = d.insn.operand_size;
  load_address(e, e.open_stack(0, size, true, false).operand);
  unsigned released = d.insn.opcode == 0xc2 ? d.insn.immediate & 0xffff : 0;
  e.move_rsp(static_cast<i32>(size + released));
  e.retire();
  e.jump_to_address(static_cast<i32>(size + released));
}

void emit_jcc(Emitter& e, const Decoded& d) {
  e.retire();
  e.jump_if(condition_of(d.insn), relative_target(e, d.insn));  // the block goes on, or its end jumps on
}

void emit_jcxz(Emitter& e, const Decoded& d) {
  asmjit::Label zero = e.a.newLabel(), not_zero = e.a.newLabel();
  e.flags_to_host();
  e.retire();
  branch_if_count_zero(e, d.insn.address_size, zero);
  e.a.jmp(not_zero);
  e.a.bind(zero);
  e.a.mov(rcx, kAddress);
  e.jump_to(relative_target(e, d.insn));
  e.a.bind(not_zero);
  e.a.mov(rcx, kAddress);
  e.jump_to(e.next_rip());
}

void emit_loop(Emitter& e, const Decoded& d) {
  asmjit::Label zero = e.a.newLabel(), again = e.a.newLabel(), done = e.a.newLabel();
  e.flags_to_host();
  e.retire();
  decrement_count(e, d.insn.address_size);
  if (d.insn.mnemonic == ZYDIS_MNEMONIC_LOOPE) e.a.jnz(done);
  if (d.insn.mnemonic == ZYDIS_MNEMONIC_LOOPNE) e.a.jz(done);
  branch_if_count_zero(e, d.insn.address_size, zero);
  e.a.jmp(again);
  e.a.bind(zero);
  e.a.mov(rcx, kAddress);
  e.a.bind(done);
  e.jump_to(e.next_rip());
  e.a.bind(again);
  e.a.mov(rcx, kAddress);
  e.jump_to(relative_target(e, d.insn));
}

}  // namespace anykvm::x86
