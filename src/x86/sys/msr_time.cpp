// Time stamp counter and KVM's paravirtual clock.

#include "x86/sys/kvmclock.h"
#include "x86/sys/msr_functions.h"

namespace anykvm::x86 {
namespace {

void move_tsc(Cpu& cpu, u64 delta) {
  cpu.state().tsc_offset += delta;
  refresh_kvmclock(cpu);
}

}  // namespace

// A nested guest has a TSC of its own; the client's is that of the hypervisor.
std::optional<u64> get_tsc(Cpu& cpu, u32, MsrAccess access) {
  return access == MsrAccess::kGuest ? cpu.state().svm.running_tsc(cpu.read_tsc()) : cpu.read_tsc();
}
bool set_tsc(Cpu& cpu, u32, u64 value, MsrAccess access) {
  u64 delta = value - cpu.read_tsc();
  if (access == MsrAccess::kClient) {
    u64 offset = cpu.state().tsc_offset;
    delta = cpu.platform().client_tsc_offset(value, offset + delta) - offset;
  }
  // SDM 3B 18.17.3: a write to the TSC moves TSC_ADJUST by as much. The client restores both one by one.
  if (access == MsrAccess::kGuest) cpu.state().msrs.tsc_adjust += delta;
  move_tsc(cpu, delta);
  return true;
}

std::optional<u64> get_tsc_adjust(Cpu& cpu, u32, MsrAccess) { return cpu.state().msrs.tsc_adjust; }
bool set_tsc_adjust(Cpu& cpu, u32, u64 value, MsrAccess access) {
  u64 delta = value - cpu.state().msrs.tsc_adjust;
  cpu.state().msrs.tsc_adjust = value;
  if (access == MsrAccess::kGuest) move_tsc(cpu, delta);
  return true;
}

std::optional<u64> get_tsc_aux(Cpu& cpu, u32, MsrAccess access) {
  bool present = cpu.model().has(Feature::kRdtscp) || cpu.model().has(Feature::kRdpid);
  if (access == MsrAccess::kGuest && !present) return std::nullopt;
  return cpu.state().msrs.tsc_aux;
}
bool set_tsc_aux(Cpu& cpu, u32 index, u64 value, MsrAccess access) {
  if (!get_tsc_aux(cpu, index, access)) return false;
  // Intel faults on the upper half, AMD ignores it (SDM 4 table 2-2, APM 3 RDTSCP).
  if (cpu.model().intel() && value >> 32) return false;
  cpu.state().msrs.tsc_aux = static_cast<u32>(value);
  return true;
}

std::optional<u64> get_kvm_system_time(Cpu& cpu, u32, MsrAccess) { return cpu.state().msrs.kvm_system_time; }
bool set_kvm_system_time(Cpu& cpu, u32, u64 value, MsrAccess) {
  cpu.state().msrs.kvm_system_time = value;
  refresh_kvmclock(cpu);
  return true;
}

std::optional<u64> get_kvm_wall_clock(Cpu& cpu, u32, MsrAccess) { return cpu.state().msrs.kvm_wall_clock; }
bool set_kvm_wall_clock(Cpu& cpu, u32, u64 value, MsrAccess) {
  cpu.state().msrs.kvm_wall_clock = value;
  write_kvm_wall_clock(cpu, Gpa(value));
  return true;
}

}  // namespace anykvm::x86
