// MSRs of Hyper-V's interface: they belong to the platform.

#include "x86/sys/msr_functions.h"

namespace anykvm::x86 {

std::optional<u64> get_hyperv(Cpu& cpu, u32 index, MsrAccess access) {
  return cpu.platform().hyperv_msr_read(index, access == MsrAccess::kClient);
}
bool set_hyperv(Cpu& cpu, u32 index, u64 value, MsrAccess access) {
  return cpu.platform().hyperv_msr_write(index, value, access == MsrAccess::kClient);
}

}  // namespace anykvm::x86
