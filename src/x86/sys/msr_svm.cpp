// MSRs of secure virtual machines (APM 2 15.30).

#include "x86/sys/msr_functions.h"

namespace anykvm::x86 {
namespace {

// VM_CR: what it says of debug ports and secure launch means nothing here.
constexpr u64 kVmCrDefined = low_bits(5);

}  // namespace

// A model without SVM says that firmware has switched it off.
std::optional<u64> get_vm_cr(Cpu& cpu, u32, MsrAccess) {
  return cpu.model().has(Feature::kSvm) ? cpu.state().svm.vm_cr : kVmCrSvmDisabled;
}

// Once locked, what the lock is about stays; SVM cannot be disabled while it is in use.
bool set_vm_cr(Cpu& cpu, u32, u64 value, MsrAccess access) {
  CpuState& state = cpu.state();
  if (!cpu.model().has(Feature::kSvm)) return access == MsrAccess::kClient && value == kVmCrSvmDisabled;
  if (value & ~kVmCrDefined) return false;
  u64& now = state.svm.vm_cr;
  constexpr u64 kLocked = kVmCrSvmLock | kVmCrSvmDisabled;
  if (now & kVmCrSvmLock) value = (value & ~kLocked) | (now & kLocked);
  if ((value & kVmCrSvmDisabled) && (state.efer & kEferSvme)) return false;
  now = value;
  return true;
}

// 8 bits, a point, and 32 bits.
std::optional<u64> get_nested_tsc_ratio(Cpu& cpu, u32, MsrAccess) { return cpu.state().svm.tsc_ratio; }
bool set_nested_tsc_ratio(Cpu& cpu, u32, u64 value, MsrAccess) {
  if (value & ~low_bits(40)) return false;
  cpu.state().svm.tsc_ratio = value;
  cpu.mode_changed();
  return true;
}

std::optional<u64> get_vm_hsave_pa(Cpu& cpu, u32, MsrAccess) { return cpu.state().svm.hsave_pa; }
bool set_vm_hsave_pa(Cpu& cpu, u32, u64 value, MsrAccess) {
  if (value & (kPageSize - 1) || value & ~low_bits(cpu.model().physical_address_bits())) return false;
  cpu.state().svm.hsave_pa = value;
  return true;
}

}  // namespace anykvm::x86
