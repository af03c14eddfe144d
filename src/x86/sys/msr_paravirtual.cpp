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

std::optional<u64> get_kvm_async_pf_en(Cpu& cpu, u32, MsrAccess) { return cpu.state().msrs.kvm_async_pf_en; }
std::optional<u64> get_kvm_async_pf_int(Cpu& cpu, u32, MsrAccess) {
  return cpu.state().msrs.kvm_async_pf_int;
}
std::optional<u64> get_kvm_async_pf_ack(Cpu&, u32, MsrAccess) { return 0; }

// Address of the record in bits 63:6.
bool set_kvm_async_pf_en(Cpu& cpu, u32 index, u64 value, MsrAccess) {
  constexpr u64 kEnabled = bit(0), kToNested = bit(2), kByInterrupt = bit(3), kReserved = bit(4) | bit(5);
  if (value & kReserved) return false;
  const bool enforces = cpu.platform().enforces_pv_features();
  if (enforces && (value & kToNested)) return false;
  if (enforces && (value & kByInterrupt) && !cpu.model().has(Feature::kKvmAsyncPfInt)) return false;
  const bool enabled = (value & kEnabled) && (value & kByInterrupt);
  if (enabled && !cpu.machine().memory().host(Gpa(value & ~u64{63}), 8)) return false;
  return cpu.platform().async_page_fault_msr_write(index, value);
}

bool set_kvm_async_pf_int(Cpu& cpu, u32 index, u64 value, MsrAccess) {
  return value <= 255 && cpu.platform().async_page_fault_msr_write(index, value);
}

bool set_kvm_async_pf_ack(Cpu& cpu, u32 index, u64 value, MsrAccess) {
  return cpu.platform().async_page_fault_msr_write(index, value);
}

}  // namespace anykvm::x86
