#pragma once
// Storage of the model-specific registers that belong to one CPU and to no other unit (APIC registers are the irqchip's).
// Owner: CpuState. Only the vCPU's thread. Reset values: SDM 3A table 10-1, APM 2 table 14-1.

#include <array>

#include "base/types.h"

namespace anykvm::x86 {

struct MsrState {
  u64 star = 0, lstar = 0, cstar = 0, sfmask = 0, kernel_gs_base = 0;
  u64 sysenter_cs = 0, sysenter_esp = 0, sysenter_eip = 0;
  u64 pat = 0x0007040600070406;
  u64 tsc_aux = 0, tsc_adjust = 0;
  u64 misc_enable = 1;
  u64 debugctl = 0;
};

}  // namespace anykvm::x86
