// MSRs whose value is part of CpuState or of the local APIC.

#include "x86/sys/control_registers.h"
#include "x86/sys/msr_functions.h"

namespace anykvm::x86 {
namespace {

bool set_segment_base(Cpu& cpu, SegmentIndex segment, u64 value) {
  if (!cpu.model().canonical_register(value)) return false;
  cpu.state().segments[segment].base = value;
  cpu.mode_changed();
  return true;
}

// AMD's CPUs keep 32 bits, since they have no SYSENTER in long mode (APM 2 6.1.2); Intel's want a canonical
// address.
bool set_sysenter_address(Cpu& cpu, u64& stored, u64 value) {
  const bool intel = cpu.model().intel() || cpu.model().entries().empty();
  if (intel && !cpu.model().canonical_register(value)) return false;
  stored = intel ? value : value & low_bits(32);
  return true;
}

}  // namespace

std::optional<u64> get_sysenter_esp(Cpu& cpu, u32, MsrAccess) { return cpu.state().msrs.sysenter_esp; }
bool set_sysenter_esp(Cpu& cpu, u32, u64 value, MsrAccess) {
  return set_sysenter_address(cpu, cpu.state().msrs.sysenter_esp, value);
}

std::optional<u64> get_sysenter_eip(Cpu& cpu, u32, MsrAccess) { return cpu.state().msrs.sysenter_eip; }
bool set_sysenter_eip(Cpu& cpu, u32, u64 value, MsrAccess) {
  return set_sysenter_address(cpu, cpu.state().msrs.sysenter_eip, value);
}

std::optional<u64> get_efer(Cpu& cpu, u32, MsrAccess) { return cpu.state().efer; }
bool set_efer(Cpu& cpu, u32, u64 value, MsrAccess) { return write_efer(cpu, value).ok(); }

std::optional<u64> get_fs_base(Cpu& cpu, u32, MsrAccess) { return cpu.state().segments[kFs].base; }
bool set_fs_base(Cpu& cpu, u32, u64 value, MsrAccess) { return set_segment_base(cpu, kFs, value); }

std::optional<u64> get_gs_base(Cpu& cpu, u32, MsrAccess) { return cpu.state().segments[kGs].base; }
bool set_gs_base(Cpu& cpu, u32, u64 value, MsrAccess) { return set_segment_base(cpu, kGs, value); }

std::optional<u64> get_apic(Cpu& cpu, u32 index, MsrAccess) {
  u64 value = 0;
  if (!cpu.platform().apic_msr_read(index, &value)) return std::nullopt;
  return value;
}
bool set_apic(Cpu& cpu, u32 index, u64 value, MsrAccess) {
  if (!cpu.platform().apic_msr_write(index, value)) return false;
  // An EOI or a lower task priority may let an interrupt through that was not ready before.
  cpu.request(kAttentionEvent);
  return true;
}

std::optional<u64> get_smi_count(Cpu& cpu, u32, MsrAccess) { return cpu.state().smm.count; }
bool set_smi_count(Cpu& cpu, u32, u64 value, MsrAccess access) {
  if (access == MsrAccess::kGuest) return false;
  cpu.state().smm.count = value;
  return true;
}

// The guest moves it in the saved state (SDM 3C 32.11).
std::optional<u64> get_smbase(Cpu& cpu, u32, MsrAccess access) {
  if (access == MsrAccess::kGuest) return std::nullopt;
  return cpu.state().smm.base;
}
bool set_smbase(Cpu& cpu, u32, u64 value, MsrAccess access) {
  if (access == MsrAccess::kGuest) return false;
  cpu.state().smm.base = static_cast<u32>(value);
  return true;
}

}  // namespace anykvm::x86
