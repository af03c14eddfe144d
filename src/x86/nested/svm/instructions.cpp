// VMRUN, VMLOAD, VMSAVE, STGI, CLGI, INVLPGA and SKINIT (APM 3).
#include "x86/mmu/access.h"
#include "x86/nested/svm/segments.h"
#include "x86/nested/svm/world_switch.h"
#include "x86/ops/ops.h"

namespace anykvm::x86 {
namespace {

Guest<void> check_enabled(Cpu& cpu) {
  const CpuState& state = cpu.state();
  if (!(state.efer & kEferSvme)) return GuestStop::ud();
  return state.cpl == 0 ? Guest<void>{} : GuestStop::gp(0);
}

// rAX: the physical address of a VMCB.
Guest<Gpa> vmcb_operand(Cpu& cpu, const Insn& insn) {
  const u64 address = cpu.state().gpr[kRax] & low_bits(8u * insn.address_size);
  if (address & (kPageSize - 1) || address & ~low_bits(cpu.model().physical_address_bits()))
    return GuestStop::gp(0);
  return Gpa(address);
}

// The registers that VMLOAD and VMSAVE move (APM 2 15.5.2).
void store_hidden(const CpuState& state, VmcbSave& area) {
  area.fs = svm::stored(state.segments[kFs]);
  area.gs = svm::stored(state.segments[kGs]);
  area.tr = svm::stored(state.tr);
  area.ldtr = svm::stored(state.ldtr);
  area.kernel_gs_base = state.msrs.kernel_gs_base;
  area.star = state.msrs.star;
  area.lstar = state.msrs.lstar;
  area.cstar = state.msrs.cstar;
  area.sfmask = state.msrs.sfmask;
  area.sysenter_cs = state.msrs.sysenter_cs;
  area.sysenter_esp = state.msrs.sysenter_esp;
  area.sysenter_eip = state.msrs.sysenter_eip;
}

u64 made_canonical(const CpuModel& model, u64 address) {
  return sign_extend(address, model.has(Feature::kLa57) ? 57 : 48);
}

void load_hidden(CpuState& state, const CpuModel& model, const VmcbSave& area) {
  state.segments[kFs] = svm::loaded(area.fs);
  state.segments[kGs] = svm::loaded(area.gs);
  state.tr = svm::loaded(area.tr);
  state.ldtr = svm::loaded(area.ldtr);
  for (Segment* s : {&state.segments[kFs], &state.segments[kGs], &state.tr, &state.ldtr})
    s->base = made_canonical(model, s->base);
  state.msrs.kernel_gs_base = made_canonical(model, area.kernel_gs_base);
  state.msrs.star = area.star;
  state.msrs.lstar = made_canonical(model, area.lstar);
  state.msrs.cstar = made_canonical(model, area.cstar);
  state.msrs.sfmask = area.sfmask & low_bits(32);
  state.msrs.sysenter_cs = area.sysenter_cs & low_bits(32);
  state.msrs.sysenter_esp = area.sysenter_esp;
  state.msrs.sysenter_eip = area.sysenter_eip;
}

}  // namespace

Guest<void> op_vmrun(Cpu& cpu, const Insn& insn) {
  TRY(check_enabled(cpu));
  TRY(svm::check(cpu, Intercept::kVmrun));
  return svm::enter_guest(cpu, TRY(vmcb_operand(cpu, insn)));
}

Guest<void> op_vmload(Cpu& cpu, const Insn& insn) {
  TRY(check_enabled(cpu));
  TRY(svm::check(cpu, Intercept::kVmload));
  const Gpa vmcb = TRY(vmcb_operand(cpu, insn));
  VmcbSave area;
  if (!read_physical(cpu, vmcb + kVmcbSaveOffset, &area, sizeof area)) return svm::no_vmcb(cpu);
  load_hidden(cpu.state(), cpu.model(), area);
  cpu.mode_changed();
  return {};
}

Guest<void> op_vmsave(Cpu& cpu, const Insn& insn) {
  TRY(check_enabled(cpu));
  TRY(svm::check(cpu, Intercept::kVmsave));
  const Gpa vmcb = TRY(vmcb_operand(cpu, insn));
  VmcbSave area;
  if (!read_physical(cpu, vmcb + kVmcbSaveOffset, &area, sizeof area)) return svm::no_vmcb(cpu);
  store_hidden(cpu.state(), area);
  if (!write_physical(cpu, vmcb + kVmcbSaveOffset, &area, sizeof area)) return svm::no_vmcb(cpu);
  return {};
}

Guest<void> op_stgi(Cpu& cpu, const Insn&) {
  TRY(check_enabled(cpu));
  TRY(svm::check(cpu, Intercept::kStgi));
  cpu.state().svm.gif = true;
  cpu.request(cpu.platform().init_waits() ? kAttentionEvent | kAttentionKick : kAttentionEvent);
  return {};
}

Guest<void> op_clgi(Cpu& cpu, const Insn&) {
  TRY(check_enabled(cpu));
  TRY(svm::check(cpu, Intercept::kClgi));
  cpu.state().svm.gif = false;
  return {};
}

// Whatever the address and the ASID: all that is known of nested guests goes, of which there is but one.
Guest<void> op_invlpga(Cpu& cpu, const Insn&) {
  TRY(check_enabled(cpu));
  TRY(svm::check(cpu, Intercept::kInvlpga));
  cpu.flush_tlb();
  return {};
}

// Secure launch needs a module that measures; no model has it (CPUID.80000001H:ECX[12]).
Guest<void> op_skinit(Cpu&, const Insn&) { return GuestStop::ud(); }

}  // namespace anykvm::x86
