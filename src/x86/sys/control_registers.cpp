#include "x86/sys/control_registers.h"

#include "x86/machine.h"

namespace anykvm::x86 {
namespace {

constexpr u64 kCr0Defined =
    kCr0Pe | kCr0Mp | kCr0Em | kCr0Ts | kCr0Et | kCr0Ne | kCr0Wp | kCr0Am | kCr0Nw | kCr0Cd | kCr0Pg;

// Changes of these make PAE paging read its PDPTEs again (SDM 3A 4.4.1).
constexpr u64 kCr0ReloadsPdptes = kCr0Cd | kCr0Nw | kCr0Pg;
constexpr u64 kCr4ReloadsPdptes = kCr4Pae | kCr4Pge | kCr4Pse | kCr4Smep;

// Changes of these change what cached translations permit. (SDM 3A 4.10.4.1 lists fewer: real TLBs apply WP,
// SMEP ... anew at each access, ours does so when it is filled.)
constexpr u64 kCr0Paging = kCr0Pe | kCr0Wp | kCr0Pg;
constexpr u64 kCr4Paging =
    kCr4Pse | kCr4Pae | kCr4Pge | kCr4La57 | kCr4Pcide | kCr4Smep | kCr4Smap | kCr4Pke | kCr4Pks;

constexpr u64 kPcidMask = 0xfff;
constexpr u64 kCr3NoFlush = bit(63);

bool valid_cr0_combination(u64 value) {
  if (value >> 32) return false;
  if ((value & kCr0Pg) && !(value & kCr0Pe)) return false;
  return !(value & kCr0Nw) || (value & kCr0Cd);
}

// PG goes from 0 to 1 with EFER.LME set: IA-32e mode begins (SDM 3A 10.8.5).
bool may_enter_long_mode(const CpuState& state) { return (state.cr4 & kCr4Pae) && !state.segments[kCs].l; }

bool may_stop_paging(const CpuState& state) { return !state.code64() && !(state.cr4 & kCr4Pcide); }

// Reads the PDPTEs if PAE paging will be on with these control registers.
Guest<void> reload_pdptes(Cpu& cpu, u64 cr0, u64 cr4, u64 efer) {
  if (!(cr0 & kCr0Pg) || !(cr4 & kCr4Pae) || (efer & kEferLma)) return {};
  CpuState& state = cpu.state();
  return load_pdptes(state, cpu.machine().memory(), state.cr3, cpu.model().physical_address_bits());
}

bool valid_cr3(const CpuModel& model, const CpuState& state, u64 value) {
  if (!state.long_mode()) return true;  // 32 bits, of which none is reserved
  if (state.cr4 & kCr4Pcide) value &= ~kCr3NoFlush;
  return !(value & ~low_bits(model.physical_address_bits()));
}

}  // namespace

u64 effective_cr0(u64 value) { return (value & kCr0Defined) | kCr0Et; }

bool valid_cr0_change(const CpuState& state, u64 value) {
  if (!valid_cr0_combination(value)) return false;
  bool paging = value & kCr0Pg, was_paging = state.cr0 & kCr0Pg;
  if (paging && !was_paging && (state.efer & kEferLme)) return may_enter_long_mode(state);
  return paging || !was_paging || may_stop_paging(state);
}

bool valid_cr4_change(const CpuModel& model, const CpuState& state, u64 value) {
  if (value & ~model.cr4_supported()) return false;
  u64 changed = state.cr4 ^ value;
  if (state.long_mode() && (!(value & kCr4Pae) || (changed & kCr4La57)))
    return false;  // SEEDS X3; SDM 3A 2.5
  if (!(changed & value & kCr4Pcide)) return true;
  return state.long_mode() && !(state.cr3 & kPcidMask);  // SDM 3A 4.10.1
}

Guest<void> write_cr0(Cpu& cpu, u64 value) {
  CpuState& state = cpu.state();
  if (!valid_cr0_change(state, value)) return GuestStop::gp(0);
  value = effective_cr0(value);
  u64 changed = state.cr0 ^ value;
  if (changed & ~kCr0PossiblyGuestOwned) {
    u64 efer = state.efer & ~kEferLma;
    if ((value & kCr0Pg) && (efer & kEferLme)) efer |= kEferLma;
    if (changed & kCr0ReloadsPdptes) TRY(reload_pdptes(cpu, value, state.cr4, efer));
    state.efer = efer;
  }
  state.cr0 = value;
  if (changed & kCr0Paging) cpu.flush_tlb();
  if (changed) cpu.mode_changed();
  return {};
}

Guest<void> write_cr3(Cpu& cpu, u64 value) {
  CpuState& state = cpu.state();
  if (!valid_cr3(cpu.model(), state, value)) return GuestStop::gp(0);
  // NOFLUSH permits to keep translations of the new PCID; the TLB keeps those of one PCID only.
  if (state.cr4 & kCr4Pcide) value &= ~kCr3NoFlush;
  if (paging_mode(state) == PagingMode::kPae) {
    TRY(load_pdptes(state, cpu.machine().memory(), value, cpu.model().physical_address_bits()));
  }
  state.cr3 = value;
  if (state.cr4 & kCr4Pge) {
    cpu.flush_tlb_non_global();
  } else {
    cpu.flush_tlb();
  }
  return {};
}

Guest<void> write_cr4(Cpu& cpu, u64 value) {
  CpuState& state = cpu.state();
  if (!valid_cr4_change(cpu.model(), state, value)) return GuestStop::gp(0);
  u64 changed = state.cr4 ^ value;
  if (changed & ~kCr4PossiblyGuestOwned) {
    if (changed & kCr4ReloadsPdptes) TRY(reload_pdptes(cpu, state.cr0, value, state.efer));
  }
  state.cr4 = value;
  if (changed & kCr4Paging) cpu.flush_tlb();
  if (changed) cpu.mode_changed();
  return {};
}

Guest<void> write_efer(Cpu& cpu, u64 value) {
  CpuState& state = cpu.state();
  // LMA is the CPU's; what a write says about it is ignored (SDM 3A 2.2.1).
  value = (value & ~kEferLma) | (state.efer & kEferLma);
  if (value & ~(cpu.model().efer_supported() | kEferLma)) return GuestStop::gp(0);
  u64 changed = state.efer ^ value;
  if ((changed & kEferLme) && (state.cr0 & kCr0Pg)) return GuestStop::gp(0);
  if ((changed & value & kEferSvme) && (state.svm.vm_cr & kVmCrSvmDisabled)) return GuestStop::gp(0);
  state.efer = value;
  // Without SVM there is no GIF to clear. A nested guest that its hypervisor lets switch SVM off cannot go
  // on.
  if (changed & kEferSvme & ~value) {
    state.svm.gif = true;
    state.events.triple_fault = state.svm.guest_mode;
  }
  if (changed & kEferNx) cpu.flush_tlb();
  if (changed) cpu.mode_changed();
  return {};
}

// SDM 1 13.3: x87 always; AVX needs SSE; the three parts of AVX-512 go together and need AVX.
Guest<void> write_xcr0(Cpu& cpu, u64 value) {
  if (!(value & kXcr0X87) || (value & ~cpu.model().xcr0_supported())) return GuestStop::gp(0);
  if ((value & kXcr0Avx) && !(value & kXcr0Sse)) return GuestStop::gp(0);
  bool avx512 = value & kXcr0Avx512;
  if (avx512 && ((value & kXcr0Avx512) != kXcr0Avx512 || !(value & kXcr0Avx))) return GuestStop::gp(0);
  cpu.state().xcr0 = value;
  cpu.mode_changed();
  return {};
}

bool valid_sregs(const CpuModel& model, const CpuState& proposed) {
  if (!valid_cr0_combination(proposed.cr0)) return false;
  if (proposed.cr4 & ~model.cr4_supported()) return false;
  constexpr u64 kEferOfEveryModel = kEferSce | kEferLme | kEferLma | kEferNx;
  if (proposed.efer & ~(model.efer_supported() | kEferOfEveryModel)) return false;
  bool long_mode = (proposed.efer & kEferLme) && (proposed.cr0 & kCr0Pg);
  if (!long_mode) return !(proposed.efer & kEferLma) && !proposed.segments[kCs].l;
  return (proposed.cr4 & kCr4Pae) && (proposed.efer & kEferLma) && valid_cr3(model, proposed, proposed.cr3);
}

}  // namespace anykvm::x86
