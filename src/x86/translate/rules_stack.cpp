// PUSH, POP, LEAVE, LEA, MOV with a direct address, NOP and hints.
#include <Zydis/Zydis.h>

#include "x86/translate/rules_families.h"

namespace anykvm::x86 {

using namespace asmjit::x86;  // register names
using host::kAddress;
using host::kScratch;

namespace {

Mem at_address(unsigned size) { return ptr(kAddress, 0, size); }

Gp sized(const Gp& reg, unsigned size) {
  return size == 1 ? Gp(reg.r8()) : size == 2 ? Gp(reg.r16()) : size == 4 ? Gp(reg.r32()) : Gp(reg.r64());
}

// Pushes the register that `value` gives when it is handed a free one.
template <class Value>
void push(Emitter& e, unsigned size, bool first, Value value) {
  const auto stack = e.open_stack(-static_cast<i32>(size), size, false, true, first);
  const Gp from = value(stack.spare);
  e.record_fault_site();
  e.a.mov(stack.operand, sized(from, size));
  e.close_access();
  e.move_rsp(-static_cast<i32>(size));
}

void push_memory(Emitter& e, const Insn& insn) {
  const unsigned size = insn.operand_size;
  e.effective_offset(insn);
  e.open_access(insn.memory.segment, size, true, false, true, false);
  e.record_fault_site();
  e.a.mov(sized(kScratch, size), at_address(size));
  e.a.mov(ANYKVM_GS(value), kScratch);
  push(e, size, false, [&](const Gp& spare) {
    e.a.mov(spare, ANYKVM_GS(value));
    return spare;
  });
}

}  // namespace

void emit_push(Emitter& e, const Decoded& d) {
  const Insn& insn = d.insn;
  const unsigned size = insn.operand_size;
  if (insn.has_memory) return push_memory(e, insn);
  const bool of_register = d.rm_is_gpr || d.opcode_is_gpr;
  push(e, size, true, [&](const Gp& spare) {
    if (!of_register) {
      e.a.mov(spare, insn.immediate);
      return spare;
    }
    if (e.resident(insn.rm)) return e.reg(insn.rm);
    e.load_gpr(spare, insn.rm);
    return spare;
  });
}

// POP with a memory operand is a helper: its address is computed with the stack pointer already moved.
void emit_pop(Emitter& e, const Decoded& d) {
  unsigned size = d.insn.operand_size;
  const auto stack = e.open_stack(0, size, true, false);
  e.record_fault_site();
  if (size == 8 && e.resident(d.insn.rm) && d.insn.rm != kRsp) {
    e.a.mov(e.reg(d.insn.rm), stack.operand);
    return e.move_rsp(8);
  }
  e.a.mov(sized(kAddress, size), stack.operand);
  e.move_rsp(static_cast<i32>(size));
  e.store_gpr(d.insn.rm, kAddress, size);
}

void emit_leave(Emitter& e, const Decoded& d) {
  unsigned size = d.insn.operand_size;
  e.load_gpr(kAddress, kRbp);
  if (e.mode.stack_bytes == 4) e.a.mov(kAddress.r32(), kAddress.r32());
  if (e.mode.stack_bytes == 2) e.a.movzx(kAddress.r32(), kAddress.r16());
  e.open_access(kSs, size, true, false);
  e.record_fault_site();
  e.a.mov(sized(kAddress, size), at_address(size));
  e.a.lea(kScratch, ptr(rbp, static_cast<i32>(size)));
  e.set_rsp(kScratch);
  e.store_gpr(kRbp, kAddress, size);
}

void emit_lea(Emitter& e, const Decoded& d) {
  const Insn& insn = d.insn;
  bool whole = insn.operand_size == 8 || (insn.operand_size == 4 && insn.address_size == 4);
  if (whole && e.resident(insn.reg)) {
    e.effective_offset(insn, e.reg(insn.reg));
    return;
  }
  e.effective_offset(insn);
  e.store_gpr(insn.reg, kAddress, insn.operand_size);
}

void emit_moffs(Emitter& e, const Decoded& d) {
  const Insn& insn = d.insn;
  unsigned size = insn.memory.size;
  bool load = insn.opcode <= 0xa1;
  e.effective_offset(insn);
  e.open_access(insn.memory.segment, size, load, !load);
  e.record_fault_site();
  if (load) {
    e.a.mov(sized(rax, size), at_address(size));
  } else {
    e.a.mov(at_address(size), sized(rax, size));
    e.close_access();
  }
}

void emit_nop(Emitter& e, const Decoded& d) {
  if (d.insn.mnemonic == ZYDIS_MNEMONIC_PAUSE) e.a.pause();
}

}  // namespace anykvm::x86
