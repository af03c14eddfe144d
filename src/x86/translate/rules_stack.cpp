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

// Pushes what `load` puts into R11 after the stack has been opened.
template <class Load>
void push_from(Emitter& e, unsigned size, bool first, Load load) {
  e.stack_offset(-static_cast<i32>(size));
  e.open_access(kSs, size, false, true, first, true);
  load();
  e.record_fault_site();
  e.a.mov(at_address(size), sized(kScratch, size));
  e.close_access();
  e.move_rsp(-static_cast<i32>(size));
}

}  // namespace

void emit_push(Emitter& e, const Decoded& d) {
  const Insn& insn = d.insn;
  unsigned size = insn.operand_size;
  if (insn.has_memory) {
    e.effective_offset(insn);
    e.open_access(insn.memory.segment, size, true, false, true, false);
    e.record_fault_site();
    e.a.mov(sized(kScratch, size), at_address(size));
    e.a.mov(ANYKVM_GS(value), kScratch);
    push_from(e, size, false, [&] { e.a.mov(kScratch, ANYKVM_GS(value)); });
  } else if (d.rm_is_gpr || d.opcode_is_gpr) {
    push_from(e, size, true, [&] { e.load_gpr(kScratch, insn.rm); });
  } else {
    push_from(e, size, true, [&] { e.a.mov(kScratch, insn.immediate); });
  }
}

// POP with a memory operand is a helper: its address is computed with the stack pointer already moved.
void emit_pop(Emitter& e, const Decoded& d) {
  unsigned size = d.insn.operand_size;
  e.stack_offset(0);
  e.open_access(kSs, size, true, false);
  e.record_fault_site();
  e.a.mov(sized(kAddress, size), at_address(size));
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
  if (whole && Emitter::resident(insn.reg)) {
    e.effective_offset(insn, Emitter::reg(insn.reg));
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
