// System instructions that are too frequent for a helper: CLI, STI, PUSHF, CLD, STD, SWAPGS, RDTSC, RDTSCP.
// Their helpers in ops/ say what they do in full; here are the ways that kernels take all the time.
#include <Zydis/Zydis.h>

#include "x86/translate/rules_families.h"

namespace anykvm::x86 {

using namespace asmjit::x86;  // register names
using host::kAddress;
using host::kScratch;

namespace {

Mem rflags(unsigned size) { return host::gs(offsetof(CpuState, rflags), size); }
constexpr i32 complement(u64 bits) { return static_cast<i32>(~bits); }

}  // namespace

void emit_cli(Emitter& e) {
  e.protect_flags();
  e.a.and_(rflags(4), complement(kFlagIf));
}

// By the helper where something waits for it: the block ends there, and the event comes after one more
// instruction.
void emit_sti(Emitter& e, const Decoded& d, const Policy& policy) {
  e.protect_flags();
  e.a.movzx(kScratch.r32(), ANYKVM_GS(held_back));
  e.a.or_(kScratch.r8(), host::gs(offsetof(Context, stamp), 1));
  e.a.jnz(e.helper_aside(d.insn, policy.helper, policy.flags));
  e.a.or_(rflags(4), i32{kFlagIf});
}

void emit_pushf(Emitter& e, const Decoded& d) {
  const unsigned size = d.insn.operand_size;
  e.protect_flags(kFlagsArithmetic);
  e.stack_offset(-static_cast<i32>(size));
  e.open_access(kSs, size, false, true);
  e.a.mov(kScratch, rflags(8));
  e.a.and_(kScratch, complement(kFlagsArithmetic | kFlagVm | kFlagRf));
  // Context::flags_image: LAHF's bits above, OF below.
  e.a.mov(ANYKVM_GS(spill), rax);
  e.a.movzx(eax, host::gs(offsetof(Context, flags_image), 2));
  e.a.rol(ax, 8);
  e.a.shl(ah, 3);
  e.a.and_(al, 0xd5);
  e.a.or_(kScratch, rax);
  e.a.mov(rax, ANYKVM_GS(spill));
  Gp value = size == 8 ? Gp(kScratch) : size == 4 ? Gp(kScratch.r32()) : Gp(kScratch.r16());
  e.record_fault_site();
  e.a.mov(ptr(kAddress, 0, size), value);
  e.close_access();
  e.move_rsp(-static_cast<i32>(size));
}

void emit_direction(Emitter& e, const Decoded& d) {
  e.protect_flags();
  if (d.insn.mnemonic == ZYDIS_MNEMONIC_STD) {
    e.a.or_(rflags(4), i32{kFlagDf});
  } else {
    e.a.and_(rflags(4), complement(kFlagDf));
  }
}

void emit_swapgs(Emitter& e) {
  const Mem base = host::gs(offsetof(CpuState, segments) + sizeof(Segment) * kGs + offsetof(Segment, base));
  e.a.mov(kAddress, base);
  e.a.mov(kScratch, ANYKVM_GS(state.msrs.kernel_gs_base));
  e.a.mov(base, kScratch);
  e.a.mov(ANYKVM_GS(state.msrs.kernel_gs_base), kAddress);
}

void emit_rdtsc(Emitter& e, const Decoded& d, const Policy& policy) {
  const bool with_aux = d.insn.mnemonic == ZYDIS_MNEMONIC_RDTSCP;
  e.protect_flags();
  e.a.cmp(with_aux ? ANYKVM_GS(rdtscp_by_helper) : ANYKVM_GS(rdtsc_by_helper), 0);
  asmjit::Label done = e.a.newLabel();
  e.a.jne(e.helper_aside(d.insn, policy.helper, policy.flags, done));
  if (with_aux) {
    e.a.rdtscp();
    e.a.mov(ecx, host::gs(offsetof(CpuState, msrs) + offsetof(MsrState, tsc_aux), 4));
  } else {
    e.a.rdtsc();
  }
  e.a.shl(rdx, 32);
  e.a.or_(rdx, rax);
  e.a.add(rdx, host::gs(offsetof(CpuState, tsc_offset)));
  if (e.mode.nested()) e.a.add(rdx, host::gs(offsetof(CpuState, svm) + offsetof(SvmState, tsc_offset)));
  e.a.mov(eax, edx);
  e.a.shr(rdx, 32);
  e.a.bind(done);
}

}  // namespace anykvm::x86
