// Control registers, model-specific registers, CPUID and TLB management (SDM 2, instruction by
// instruction). Rows with kOpCpl0 come here at CPL 0 only.

#include "x86/sys/control_registers.h"

#include <linux/kvm.h>

#include "x86/mmu/access.h"
#include "x86/nested/svm/world_switch.h"
#include "x86/ops/ops.h"
#include "x86/sys/msr.h"
#include "x86/sys/smm.h"

namespace anykvm::x86 {
namespace {

constexpr u32 kMsrApicBase = 0x1b;
constexpr u64 kApicBaseEnable = bit(11);

// 32-bit results of system instructions clear the upper halves (SDM 1 3.4.1.1).
void set_edx_eax(CpuState& state, u64 value) {
  state.gpr[kRax] = static_cast<u32>(value);
  state.gpr[kRdx] = value >> 32;
}

u64 edx_eax(const CpuState& state) { return state.gpr[kRdx] << 32 | static_cast<u32>(state.gpr[kRax]); }

u32 ecx(const CpuState& state) { return static_cast<u32>(state.gpr[kRcx]); }

// Moves to and from control registers are 64 bits wide in 64-bit mode and 32 elsewhere, whatever the prefixes
// say.
unsigned control_register_size(const Insn& insn) { return insn.code_bits == 64 ? 8 : 4; }

// The APIC feature bit shows IA32_APIC_BASE.EN (SDM 3A 11.4.3).
bool apic_enabled(Cpu& cpu) {
  u64 apic_base = 0;
  return !cpu.platform().apic_msr_read(kMsrApicBase, &apic_base) || (apic_base & kApicBaseEnable);
}

}  // namespace

Guest<void> op_lmsw(Cpu& cpu, const Insn& insn) {
  TRY(svm::check_cr_write(cpu, 0));
  TRY(svm::check(cpu, Intercept::kCr0SelectiveWrite));  // whatever changes (APM 2 15.9)
  u64 value = TRY(read_rm(cpu, insn, 2));
  constexpr u64 kLoaded = kCr0Pe | kCr0Mp | kCr0Em | kCr0Ts;
  u64 cr0 = cpu.state().cr0;
  // LMSW sets PE and never clears it.
  cr0 = (cr0 & ~(kLoaded & ~kCr0Pe)) | (value & kLoaded);
  return write_cr0(cpu, cr0);
}

Guest<void> op_clts(Cpu& cpu, const Insn&) {
  TRY(svm::check_cr_write(cpu, 0));
  return write_cr0(cpu, cpu.state().cr0 & ~kCr0Ts);
}

Guest<void> op_mov_from_cr(Cpu& cpu, const Insn& insn) {
  CpuState& state = cpu.state();
  if (insn.lock && !cpu.model().has(Feature::kCr8Legacy)) return GuestStop::ud();
  TRY(svm::check_cr_read(cpu, insn.reg));
  u64 value = 0;
  switch (insn.reg) {
    case 0:
      value = state.cr0;
      break;
    case 2:
      value = state.cr2;
      break;
    case 3:
      value = state.cr3;
      break;
    case 4:
      value = state.cr4;
      break;
    case 8:
      value = state.svm.masks_interrupts() ? svm::virtual_cr8(state) : cpu.platform().cr8();
      break;
    default:
      return GuestStop::ud();
  }
  write_gpr(state, insn, insn.rm, control_register_size(insn), value);
  return {};
}

Guest<void> op_mov_to_cr(Cpu& cpu, const Insn& insn) {
  CpuState& state = cpu.state();
  if (insn.lock && !cpu.model().has(Feature::kCr8Legacy)) return GuestStop::ud();
  TRY(svm::check_cr_write(cpu, insn.reg));
  u64 value = read_gpr(state, insn, insn.rm, control_register_size(insn));
  switch (insn.reg) {
    case 0:
      TRY(svm::check_cr0_selective_write(cpu, value));
      return write_cr0(cpu, value);
    case 2:
      state.cr2 = value;
      return {};
    case 3:
      return write_cr3(cpu, value);
    case 4:
      return write_cr4(cpu, value);
    case 8:
      if (value > 15) return GuestStop::gp(0);
      if (state.svm.masks_interrupts())
        svm::set_virtual_cr8(state, static_cast<u8>(value));
      else
        cpu.platform().set_cr8(static_cast<u8>(value));
      cpu.request(kAttentionEvent);  // a lower task priority may have made an interrupt ready
      return {};
    default:
      return GuestStop::ud();
  }
}

namespace {

// An access that is filtered or that failed: #GP, unless the client wants to answer it. Its answer to an
// earlier attempt counts, also if it lifted the filter meanwhile.
Guest<void> msr_failed(Cpu& cpu, u32 index, bool write, bool filtered, u64* value) {
  u32 reason = filtered            ? KVM_MSR_EXIT_REASON_FILTER
               : msr_exists(index) ? KVM_MSR_EXIT_REASON_INVAL
                                   : KVM_MSR_EXIT_REASON_UNKNOWN;
  if (!cpu.client_msr_answered(index, write) && !cpu.platform().msr_exit_wanted(reason))
    return GuestStop::gp(0);
  if (!TRY(cpu.client_msr(index, write, reason, value))) return GuestStop::gp(0);
  return {};
}

}  // namespace

Guest<void> op_rdmsr(Cpu& cpu, const Insn&) {
  u32 index = ecx(cpu.state());
  TRY(svm::check_msr(cpu, index, false));
  bool filtered = cpu.client_msr_answered(index, false) || cpu.platform().msr_filtered(index, false);
  std::optional<u64> value;
  if (!filtered) value = read_msr(cpu, index, MsrAccess::kGuest);
  u64 answer = value.value_or(0);
  if (!value) TRY(msr_failed(cpu, index, false, filtered, &answer));
  set_edx_eax(cpu.state(), answer);
  return {};
}

Guest<void> op_wrmsr(Cpu& cpu, const Insn&) {
  u32 index = ecx(cpu.state());
  u64 value = edx_eax(cpu.state());
  TRY(svm::check_msr(cpu, index, true));
  bool filtered = cpu.client_msr_answered(index, true) || cpu.platform().msr_filtered(index, true);
  if (!filtered && write_msr(cpu, index, value, MsrAccess::kGuest)) return {};
  return msr_failed(cpu, index, true, filtered, &value);
}

Guest<void> op_rdpmc(Cpu& cpu, const Insn&) {
  const CpuState& state = cpu.state();
  if (state.cpl != 0 && !(state.cr4 & kCr4Pce)) return GuestStop::gp(0);
  TRY(svm::check(cpu, Intercept::kRdpmc));
  const std::optional<u64> value = read_counter(cpu, ecx(state));
  if (!value) return GuestStop::gp(0);
  set_edx_eax(cpu.state(), *value);
  return {};
}

Guest<void> op_cpuid(Cpu& cpu, const Insn&) {
  TRY(svm::check(cpu, Intercept::kCpuid));
  CpuState& state = cpu.state();
  auto leaf = static_cast<u32>(state.gpr[kRax]);
  CpuidResult result = cpu.model().cpuid(leaf, ecx(state), state);
  if (leaf == 1 && !apic_enabled(cpu)) result.edx &= ~(1u << 9);
  if (leaf == 0x80000007 && cpu.platform().hides_invariant_tsc()) result.edx &= ~(1u << 8);
  state.gpr[kRax] = result.eax;
  state.gpr[kRbx] = result.ebx;
  state.gpr[kRcx] = result.ecx;
  state.gpr[kRdx] = result.edx;
  return {};
}

Guest<void> op_xgetbv(Cpu& cpu, const Insn&) {
  CpuState& state = cpu.state();
  if (!(state.cr4 & kCr4Osxsave)) return GuestStop::ud();
  bool in_use_form = ecx(state) == 1 && cpu.model().has(Feature::kXgetbv1);
  if (ecx(state) != 0 && !in_use_form) return GuestStop::gp(0);
  // Form 1 gives XCR0 & XINUSE. A CPU may count any component as in use (SDM 1 13.6), which spares saving
  // them.
  set_edx_eax(state, state.xcr0);
  return {};
}

Guest<void> op_xsetbv(Cpu& cpu, const Insn&) {
  CpuState& state = cpu.state();
  if (!(state.cr4 & kCr4Osxsave)) return GuestStop::ud();
  TRY(svm::check(cpu, Intercept::kXsetbv));
  if (ecx(state) != 0) return GuestStop::gp(0);
  return write_xcr0(cpu, edx_eax(state));
}

Guest<void> op_rdpkru(Cpu& cpu, const Insn&) {
  CpuState& state = cpu.state();
  if (!(state.cr4 & kCr4Pke)) return GuestStop::ud();
  if (ecx(state) != 0) return GuestStop::gp(0);
  set_edx_eax(state, state.pkru);
  return {};
}

Guest<void> op_wrpkru(Cpu& cpu, const Insn&) {
  CpuState& state = cpu.state();
  if (!(state.cr4 & kCr4Pke)) return GuestStop::ud();
  if (ecx(state) != 0 || static_cast<u32>(state.gpr[kRdx]) != 0) return GuestStop::gp(0);
  auto value = static_cast<u32>(state.gpr[kRax]);
  if (value == state.pkru) return {};
  state.pkru = value;
  cpu.flush_tlb();  // its entries say what the old keys permitted
  return {};
}

Guest<void> op_invlpg(Cpu& cpu, const Insn& insn) {
  TRY(svm::check(cpu, Intercept::kInvlpg));
  const CpuState& state = cpu.state();
  // No segment checks: only the address counts, and one that is not canonical is ignored (SDM 2A INVLPG).
  u64 offset = effective_offset(state, insn);
  bool based = insn.code_bits != 64 || insn.memory.segment >= kFs;
  u64 address = offset + (based ? state.segments[insn.memory.segment].base : 0);
  if (insn.code_bits != 64) address &= low_bits(32);
  if (state.canonical(address)) cpu.flush_tlb_page(Gva(address));
  return {};
}

// SDM 2A INVPCID. The TLB holds translations of the current PCID only, so everything but a single address of
// the current one may flush more than was asked for.
Guest<void> op_invpcid(Cpu& cpu, const Insn& insn) {
  enum Type : u64 { kAddress, kContext, kAllWithGlobals, kAllContexts };
  const CpuState& state = cpu.state();
  if (!cpu.model().has(Feature::kInvpcid)) return GuestStop::ud();
  u64 type = read_gpr(state, insn, insn.reg, control_register_size(insn));
  Gva where = TRY(memory_operand(cpu, insn, 16, Access::kRead));
  TRY(svm::check(cpu, Intercept::kInvpcid, where.value, type));
  struct {
    u64 pcid, address;
  } descriptor{};
  TRY(read_linear(cpu, where, &descriptor, sizeof descriptor));
  if (type > kAllContexts || descriptor.pcid >> 12) return GuestStop::gp(0);
  bool names_pcid = type == kAddress || type == kContext;
  if (names_pcid && descriptor.pcid != 0 && !(state.cr4 & kCr4Pcide)) return GuestStop::gp(0);
  if (type == kAddress && !cpu.model().canonical_register(descriptor.address)) return GuestStop::gp(0);

  u64 current_pcid = state.cr4 & kCr4Pcide ? state.cr3 & 0xfff : 0;
  if (type == kAllWithGlobals) {
    cpu.flush_tlb();
  } else if (type == kAddress && descriptor.pcid == current_pcid) {
    cpu.flush_tlb_page(Gva(descriptor.address));
  } else {
    cpu.flush_tlb_non_global();
  }
  return {};
}

// Memory is coherent with the host's caches, so there is nothing to write back.
Guest<void> op_wbinvd(Cpu& cpu, const Insn&) { return svm::check(cpu, Intercept::kWbinvd); }

Guest<void> op_invd(Cpu& cpu, const Insn&) { return svm::check(cpu, Intercept::kInvd); }

Guest<void> op_hlt(Cpu& cpu, const Insn&) {
  TRY(svm::check(cpu, Intercept::kHlt));
  cpu.state().mp_state = MpState::kHalted;
  Exit exit;
  exit.reason = Exit::Reason::kHalt;
  cpu.exit_after_instruction(exit);
  return {};
}

// Not offered in CPUID.
Guest<void> op_monitor(Cpu&, const Insn&) { return GuestStop::ud(); }
Guest<void> op_mwait(Cpu&, const Insn&) { return GuestStop::ud(); }

Guest<void> op_rsm(Cpu& cpu, const Insn&) {
  TRY(svm::check(cpu, Intercept::kRsm));
  CpuState& state = cpu.state();
  if (!state.smm.active) return GuestStop::ud();
  if (!leave_smm(cpu)) {
    state.events.triple_fault = true;
    return {};
  }
  // INIT, NMIs and interrupts that waited.
  cpu.request(kAttentionEvent | kAttentionKick);
  if (state.mp_state != MpState::kHalted) return {};
  Exit exit;
  exit.reason = Exit::Reason::kHalt;
  cpu.exit_after_instruction(exit);
  return {};
}

}  // namespace anykvm::x86
