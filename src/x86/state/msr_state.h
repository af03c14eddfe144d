#pragma once
// Storage of the model-specific registers that belong to one CPU and to no other unit (APIC registers are the
// irqchip's). Owner: CpuState. Only the vCPU's thread. Reset values: SDM 3A table 10-1, APM 2 table 14-1.

#include <array>

#include "base/types.h"

namespace anykvm::x86 {

// IA32_ARCH_CAPABILITIES of a new CPU: the weaknesses that the host says it does not have
// (sys/msr_model.cpp).
inline constexpr u64 kLfenceSerializes = 2;  // of DE_CFG
u64 default_arch_capabilities();
u64 default_microcode_revision();

inline constexpr unsigned kMtrrVariableRanges = 8;
inline constexpr unsigned kMachineCheckBanks = 32;

struct MsrState {
  // The rows of tables/msrs.def that are nothing but storage.
#define ANYKVM_MSR_STORED(index, name, feature, reset, reserved, lists) u64 name = reset;
#define ANYKVM_MSR_CANONICAL(index, name, feature, lists) u64 name = 0;
#define ANYKVM_MSR_CONSTANT(index, name, feature, value, lists)
#define ANYKVM_MSR_FUNCTIONS(first, last, name, feature, lists)
#include "x86/tables/msrs.def"
#undef ANYKVM_MSR_STORED
#undef ANYKVM_MSR_CANONICAL
#undef ANYKVM_MSR_CONSTANT
#undef ANYKVM_MSR_FUNCTIONS

  // Those whose functions check or do more.
  u64 pat = 0x0007040600070406;
  u64 sysenter_esp = 0, sysenter_eip = 0;
  u64 tsc_aux = 0, tsc_adjust = 0;
  u64 misc_enable = 0x1800;  // no branch trace, no precise event sampling; firmware sets fast strings
  u64 feature_control = 0;
  u64 microcode_revision = default_microcode_revision();
  u64 arch_capabilities = default_arch_capabilities();
  u64 spec_ctrl = 0;
  u64 tsx_ctrl = 0;
  u64 hwcr = 0;
  u64 platform_info = 0;
  u64 mcg_cap = 0x10a;  // ten banks, MCG_CTL
  u64 mcg_status = 0, mcg_ctl = ~u64{0};
  u64 mtrr_def_type = 0;
  std::array<u64, 2 * kMtrrVariableRanges> mtrr_variable{};  // base, mask, base, mask ...
  std::array<u64, 11> mtrr_fixed{};                          // in the order of their indices
  std::array<u64, 4 * kMachineCheckBanks> mc_banks{};        // CTL, STATUS, ADDR, MISC of each bank
  std::array<u64, kMachineCheckBanks> mc_ctl2{};
  u64 kvm_system_time = 0, kvm_wall_clock = 0, kvm_pv_eoi = 0;
  u64 kvm_async_pf_en = 0, kvm_async_pf_int = 0;
};

}  // namespace anykvm::x86
