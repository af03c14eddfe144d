// KVM's own MSRs that name guest memory.

#include "x86/machine.h"
#include "x86/sys/msr_functions.h"

namespace anykvm::x86 {

// Bit 0: enabled; above bit 1 the address, in guest memory, of the bit that core::PvEoi sets.
std::optional<u64> get_kvm_pv_eoi(Cpu& cpu, u32, MsrAccess) { return cpu.state().msrs.kvm_pv_eoi; }
bool set_kvm_pv_eoi(Cpu& cpu, u32, u64 value, MsrAccess) {
  constexpr u64 kEnabled = bit(0), kReserved = bit(1);
  if (value & kReserved) return false;
  const Gpa at(value & ~kEnabled);
  if ((value & kEnabled) && !cpu.machine().memory().host(at, 1)) return false;
  cpu.state().msrs.kvm_pv_eoi = value;
  return true;
}

}  // namespace anykvm::x86
