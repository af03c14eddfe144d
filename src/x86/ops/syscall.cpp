// SYSCALL, SYSRET, SYSENTER and SYSEXIT by the rules of both vendors (SDM 2B; APM 3).

#include "x86/ops/ops.h"
#include "x86/state/segment_types.h"

namespace anykvm::x86 {

namespace {

enum class CodeSize : u8 { k32, k64 };

// None of these instructions reads a descriptor: the segments are flat by definition.
Segment flat_segment(u16 selector, u8 type, u8 dpl) {
  Segment segment;
  segment.selector = selector;
  segment.limit = 0xffffffff;
  segment.type = type;
  segment.s = segment.present = segment.g = 1;
  segment.dpl = dpl;
  return segment;
}

void set_flat_code(CpuState& state, u16 selector, u8 cpl, CodeSize size) {
  constexpr u8 kExecuteReadAccessed = 11;
  Segment cs = flat_segment(static_cast<u16>((selector & ~3) | cpl), kExecuteReadAccessed, cpl);
  cs.l = size == CodeSize::k64;
  cs.db = size == CodeSize::k32;
  state.segments[kCs] = cs;
  state.cpl = cpl;
}

void set_flat_stack(CpuState& state, u16 selector, u8 cpl) {
  constexpr u8 kReadWriteAccessed = 3;
  Segment ss = flat_segment(static_cast<u16>((selector & ~3) | cpl), kReadWriteAccessed, cpl);
  ss.db = 1;
  state.segments[kSs] = ss;
}

u16 syscall_selector(const CpuState& state) {
  return static_cast<u16>(bits(state.msrs.star, 47, 32)) & 0xfffc;
}
u16 sysret_selector(const CpuState& state) { return static_cast<u16>(bits(state.msrs.star, 63, 48)); }
u16 sysenter_selector(const CpuState& state) { return static_cast<u16>(state.msrs.sysenter_cs & 0xfffc); }

void syscall_in_long_mode(CpuState& state, bool intel) {
  // AMD saves RFLAGS with RF clear.
  u64 saved = intel ? state.rflags : state.rflags & ~u64{kFlagRf};
  state.gpr[kRcx] = state.rip;
  state.gpr[kR11] = saved;
  state.rip = state.code64() ? state.msrs.lstar : state.msrs.cstar;
  state.rflags = (state.rflags & ~(state.msrs.sfmask | kFlagRf)) | kFlagFixed1;
}

void syscall_in_legacy_mode(CpuState& state) {
  state.gpr[kRcx] = state.rip & 0xffffffff;
  state.rip = bits(state.msrs.star, 31, 0);
  state.rflags &= ~u64{kFlagVm | kFlagIf | kFlagRf};
}

// On AMD, SYSRET leaves the hidden part of SS as it is.
void set_sysret_stack(CpuState& state, u16 selector, bool intel) {
  if (intel) return set_flat_stack(state, selector, 3);
  state.segments[kSs].selector = selector | 3;
  state.segments[kSs].dpl = 3;
}

void finish(Cpu& cpu) {
  cpu.mode_changed();
  if (cpu.state().rflags & kFlagIf) cpu.interrupts_may_have_opened();
}

}  // namespace

Guest<void> op_syscall(Cpu& cpu, const Insn&) {
  CpuState& state = cpu.state();
  const bool intel = cpu.model().intel();
  if (!(state.efer & kEferSce) || (intel && !state.code64())) return GuestStop::ud();
  // AMD has it in legacy protected mode too.
  if (!state.protected_mode()) return GuestStop::ud();
  u16 selector = syscall_selector(state);
  if (state.long_mode()) {
    syscall_in_long_mode(state, intel);
    set_flat_code(state, selector, 0, CodeSize::k64);
  } else {
    syscall_in_legacy_mode(state);
    set_flat_code(state, selector, 0, CodeSize::k32);
  }
  set_flat_stack(state, static_cast<u16>(selector + 8), 0);
  cpu.mode_changed();
  if (state.rflags & kFlagTf) cpu.step_trap_after_instruction();
  return {};
}

Guest<void> op_sysret(Cpu& cpu, const Insn& insn) {
  CpuState& state = cpu.state();
  const bool intel = cpu.model().intel();
  if (!(state.efer & kEferSce) || (intel && !state.code64())) return GuestStop::ud();
  if (!state.protected_mode() || state.cpl != 0) return GuestStop::gp(0);
  const bool to64 = state.code64() && insn.rex_w;
  // On Intel the fault comes here, at CPL 0; AMD takes it at the target, at CPL 3.
  if (to64 && intel && !state.canonical(state.gpr[kRcx])) return GuestStop::gp(0);

  u16 selector = sysret_selector(state);
  if (state.long_mode()) {
    constexpr u64 kRestored = 0x3c7fd7;  // SDM 2B, SYSRET: not RF, VM or reserved bits
    state.rflags = (state.gpr[kR11] & kRestored) | kFlagFixed1;
  } else {
    state.rflags |= kFlagIf;
  }
  state.rip = to64 ? state.gpr[kRcx] : state.gpr[kRcx] & 0xffffffff;
  u16 code_selector = static_cast<u16>(to64 ? selector + 16 : selector);
  set_flat_code(state, code_selector, 3, to64 ? CodeSize::k64 : CodeSize::k32);
  set_sysret_stack(state, static_cast<u16>(selector + 8), intel);
  finish(cpu);
  if (state.rflags & kFlagTf) cpu.step_trap_after_instruction();
  return {};
}

Guest<void> op_sysenter(Cpu& cpu, const Insn&) {
  CpuState& state = cpu.state();
  // APM 3: not in long mode on AMD.
  if (state.long_mode() && !cpu.model().intel()) return GuestStop::ud();
  u16 selector = sysenter_selector(state);
  if (!state.protected_mode() || selector == 0) return GuestStop::gp(0);
  u64 mask = state.long_mode() ? ~u64{0} : 0xffffffff;
  state.rflags &= ~u64{kFlagVm | kFlagIf | kFlagRf};
  state.gpr[kRsp] = state.msrs.sysenter_esp & mask;
  state.rip = state.msrs.sysenter_eip & mask;
  set_flat_code(state, selector, 0, state.long_mode() ? CodeSize::k64 : CodeSize::k32);
  set_flat_stack(state, static_cast<u16>(selector + 8), 0);
  cpu.mode_changed();
  return {};
}

Guest<void> op_sysexit(Cpu& cpu, const Insn& insn) {
  CpuState& state = cpu.state();
  if (state.cpl != 0) return GuestStop::gp(0);
  if (state.long_mode() && !cpu.model().intel()) return GuestStop::ud();
  u16 selector = sysenter_selector(state);
  if (!state.protected_mode() || selector == 0) return GuestStop::gp(0);
  const bool to64 = state.code64() && insn.rex_w;
  u64 rip = state.gpr[kRdx];
  u64 rsp = state.gpr[kRcx];
  if (to64 && !(state.canonical(rip) && state.canonical(rsp))) return GuestStop::gp(0);
  state.rip = to64 ? rip : rip & 0xffffffff;
  state.gpr[kRsp] = to64 ? rsp : rsp & 0xffffffff;
  u16 code_selector = static_cast<u16>(selector + (to64 ? 32 : 16));
  set_flat_code(state, code_selector, 3, to64 ? CodeSize::k64 : CodeSize::k32);
  set_flat_stack(state, static_cast<u16>(code_selector + 8), 3);
  finish(cpu);
  return {};
}

}  // namespace anykvm::x86
