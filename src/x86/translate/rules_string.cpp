// MOVS, STOS, LODS, SCAS, CMPS without REP, and XLAT: upwards, in 64-bit mode. Their helpers do the rest.
#include "x86/ops/string_common.h"
#include "x86/translate/rules_families.h"

namespace anykvm::x86 {

using namespace asmjit::x86;  // register names
using host::kAddress;
using host::kScratch;

namespace {

Gp sized(const Gp& reg, unsigned size) {
  return size == 1 ? Gp(reg.r8()) : size == 2 ? Gp(reg.r16()) : size == 4 ? Gp(reg.r32()) : Gp(reg.r64());
}

class ImpliedOperands {
 public:
  ImpliedOperands(Emitter& e, const Insn& insn) : e(e), m_insn(insn), m_size(insn.operand_size) {}

  // The operand that `base` addresses is in memory at R10. Clobbers R11.
  Mem open(const Gp& base, SegmentIndex segment, bool write) {
    e.a.mov(kAddress, base);
    e.open_access(segment, m_size, !write, write);
    return ptr(kAddress, 0, m_size);
  }
  Mem source() { return open(rsi, string_source_segment(m_insn), false); }
  Mem target(bool write) { return open(rdi, kEs, write); }
  // For a second operand: the first one, from the Context.
  void keep_source() {
    const Mem from = source();
    e.record_fault_site();
    e.a.mov(sized(kScratch, m_size), from);
    e.a.mov(ANYKVM_GS(value), kScratch);
  }
  // The second operand's, if there is one, with the first in R11.
  Mem target_after_source(bool write) {
    keep_source();
    const Mem to = target(write);
    e.a.mov(kScratch, ANYKVM_GS(value));
    return to;
  }

  void emit(Op function) {
    const Gp accumulator = sized(rax, m_size), other = sized(kScratch, m_size);
    const bool reads_source = function == op_movs || function == op_lods || function == op_cmps;
    const bool writes = function == op_movs || function == op_stos;
    Mem memory;
    if (function == op_lods) {
      memory = source();
    } else {
      memory = reads_source ? target_after_source(writes) : target(writes);
    }
    e.record_fault_site();
    if (writes) {
      e.a.mov(memory, reads_source ? other : accumulator);
    } else if (function == op_lods) {
      e.a.mov(accumulator, memory);
    } else {
      e.a.cmp(reads_source ? other : accumulator, memory);
    }
    if (!writes && function != op_lods) e.flags_written(kFlagsArithmetic);
    if (reads_source) e.a.lea(rsi, ptr(rsi, static_cast<i32>(m_size)));
    if (function != op_lods) e.a.lea(rdi, ptr(rdi, static_cast<i32>(m_size)));
  }

 private:
  Emitter& e;
  const Insn& m_insn;
  const unsigned m_size;
};

void emit_xlat(Emitter& e, const Insn& insn) {
  e.a.movzx(kScratch.r32(), al);
  e.a.lea(kAddress, ptr(rbx, kScratch));
  e.open_access(string_source_segment(insn), 1, true, false);
  e.record_fault_site();
  e.a.mov(al, ptr(kAddress, 0, 1));
}

}  // namespace

void emit_string(Emitter& e, const Decoded& d, const Policy& policy) {
  e.protect_flags(kFlagsArithmetic);
  if (policy.helper == op_xlat) return emit_xlat(e, d.insn);
  const asmjit::Label done = e.a.newLabel();
  const asmjit::Label downwards = e.helper_aside(d.insn, policy.helper, policy.flags, done);
  e.a.test(host::gs(offsetof(CpuState, rflags) + 1, 1), kFlagDf >> 8);
  e.a.jnz(downwards);
  ImpliedOperands(e, d.insn).emit(policy.helper);
  e.protect_flags(kFlagsArithmetic);  // where the helper has them, too
  e.a.bind(done);
}

}  // namespace anykvm::x86
