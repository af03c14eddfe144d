#pragma once
// What a guest's CPUID says of Hyper-V: which MSRs and hypercalls it may use, and what
// KVM_GET_SUPPORTED_HV_CPUID offers. Owner: VirtualProcessor; a value. Any thread.

#include <vector>

#include "core/hyperv/tlfs.h"
#include "x86/sys/cpu_model.h"

namespace anykvm::core::hyperv {

struct Features {
  bool present = false;                 // the interface's signature is there
  u32 msrs = 0, calls = 0, others = 0;  // kLeafFeatures: EAX, EBX, EDX
  u32 recommendations = 0, spin_retries = 0;
  u32 nested = 0;  // kLeafNested: EAX
  bool kernel_debugging = false;

  static Features of(const std::vector<x86::CpuidEntry>& entries);
  // With KVM_CAP_HYPERV_ENFORCE_CPUID these decide; else everything is permitted.
  bool permit_msr(u32 index) const;
  bool permit_call(u16 code) const;
};

// `has_apic`: the VM has local APICs, or is not known yet.
std::vector<x86::CpuidEntry> supported_cpuid(bool has_apic);

}  // namespace anykvm::core::hyperv
