// PUSHF, POPF, CLI, STI, CLAC, STAC, CLD and STD (SDM 2A, 2B; virtual interrupts: SDM 3B 20.3, 20.4).

#include <array>

#include "x86/nested/svm/exits.h"
#include "x86/ops/ops.h"
#include "x86/sys/stack_frame.h"

namespace anykvm::x86 {

namespace {

void replace_flags(CpuState& state, u64 image, u64 mask) {
  state.rflags = (state.rflags & ~mask) | (image & mask) | kFlagFixed1;
}

constexpr u64 kFlagsAnyLevel = kFlagsArithmetic | kFlagTf | kFlagDf | kFlagNt;

u64 popf_mask(const CpuState& state, unsigned size) {
  u64 mask = kFlagsAnyLevel;
  if (size > 2) mask |= kFlagAc | kFlagId;
  if (state.cpl <= state.iopl()) mask |= kFlagIf;
  if (state.cpl == 0) mask |= kFlagIopl;
  return mask;
}

void after_flags_changed(Cpu& cpu, u64 old) {
  CpuState& state = cpu.state();
  if ((state.rflags ^ old) & (kFlagTf | kFlagAc)) cpu.mode_changed();
  bool opened = (state.rflags & ~old) & kFlagIf;
  if (opened) cpu.interrupts_may_have_opened();
}

// POPF in virtual-8086 mode with CR4.VME and IOPL below 3: IF of the image goes to VIF.
Guest<void> set_virtual_flags(CpuState& state, u64 image) {
  bool if_image = image & kFlagIf;
  if ((image & kFlagTf) || (if_image && (state.rflags & kFlagVip))) return GuestStop::gp(0);
  replace_flags(state, image, kFlagsAnyLevel);
  replace_flags(state, if_image ? u64{kFlagVif} : 0, kFlagVif);
  return {};
}

// Who may not touch IF itself may have VIF instead: virtual-8086 mode with VME, ring 3 with PVI.
bool has_virtual_if(const CpuState& state) {
  return state.v86_mode() ? state.cr4 & kCr4Vme : (state.cr4 & kCr4Pvi) && state.cpl == 3;
}

bool may_change_if(const CpuState& state) { return state.real_mode() || state.cpl <= state.iopl(); }

Guest<void> change_ac(Cpu& cpu, bool value) {
  CpuState& state = cpu.state();
  if (state.cpl != 0) return GuestStop::ud();
  u64 old = state.rflags;
  replace_flags(state, value ? u64{kFlagAc} : 0, kFlagAc);
  after_flags_changed(cpu, old);
  return {};
}

}  // namespace

// Its hint is for hypervisors alone; where none wants it, it is not called.
Guest<void> op_pause(Cpu& cpu, const Insn&) { return svm::check(cpu, Intercept::kPause); }

Guest<void> op_pushf(Cpu& cpu, const Insn& insn) {
  TRY(svm::check(cpu, Intercept::kPushf));
  const CpuState& state = cpu.state();
  u64 image = state.rflags & ~u64{kFlagVm | kFlagRf};
  if (state.v86_mode() && state.iopl() < 3) {
    if (!(state.cr4 & kCr4Vme) || insn.operand_size != 2) return GuestStop::gp(0);
    image = (image & ~u64{kFlagIf}) | kFlagIopl | (image & kFlagVif ? u64{kFlagIf} : 0);
  }
  return push_value(cpu, image, insn.operand_size);
}

Guest<void> op_popf(Cpu& cpu, const Insn& insn) {
  TRY(svm::check(cpu, Intercept::kPopf));
  CpuState& state = cpu.state();
  const unsigned size = insn.operand_size;
  const bool virtual_if = state.v86_mode() && state.iopl() < 3;
  if (virtual_if && (!(state.cr4 & kCr4Vme) || size != 2)) return GuestStop::gp(0);
  std::array<u64, 1> image;
  TRY(peek_stack(cpu, 0, size, image));
  u64 old = state.rflags;
  if (virtual_if) {
    TRY(set_virtual_flags(state, image[0]));
  } else {
    replace_flags(state, image[0], popf_mask(state, size));
  }
  state.rflags &= ~u64{kFlagRf};
  state.gpr[kRsp] = popped_stack_pointer(state, size);
  after_flags_changed(cpu, old);
  return {};
}

Guest<void> op_cli(Cpu& cpu, const Insn&) {
  CpuState& state = cpu.state();
  if (may_change_if(state)) {
    state.rflags &= ~u64{kFlagIf};
    return {};
  }
  if (!has_virtual_if(state)) return GuestStop::gp(0);
  state.rflags &= ~u64{kFlagVif};
  return {};
}

Guest<void> op_sti(Cpu& cpu, const Insn&) {
  CpuState& state = cpu.state();
  if (may_change_if(state)) {
    if (state.rflags & kFlagIf) return {};
    state.rflags |= kFlagIf;
    state.events.shadow = kShadowSti;
    cpu.interrupts_may_have_opened();
    return {};
  }
  if (!has_virtual_if(state) || (state.rflags & kFlagVip)) return GuestStop::gp(0);
  state.rflags |= kFlagVif;
  return {};
}

Guest<void> op_clac(Cpu& cpu, const Insn&) { return change_ac(cpu, false); }

Guest<void> op_stac(Cpu& cpu, const Insn&) { return change_ac(cpu, true); }

Guest<void> op_cld(Cpu& cpu, const Insn&) {
  cpu.state().rflags &= ~u64{kFlagDf};
  return {};
}

Guest<void> op_std(Cpu& cpu, const Insn&) {
  cpu.state().rflags |= kFlagDf;
  return {};
}

}  // namespace anykvm::x86
