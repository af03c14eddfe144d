#pragma once
// Turns what the KVM supports into what one vCPU shows: its APIC ID and the topology of one package of
// single-thread cores. Owner: nobody; pure functions. Any thread.

#include <linux/kvm.h>

#include <vector>

#include "base/types.h"

namespace anykvm::vmm {

struct CpuidTopology {
  u32 apic_id;
  u32 cpus;
  bool tsc_deadline_timer;  // KVM_CAP_TSC_DEADLINE_TIMER; KVM_GET_SUPPORTED_CPUID leaves the bit to the VMM
};

std::vector<kvm_cpuid_entry2> cpuid_for_vcpu(std::vector<kvm_cpuid_entry2> supported,
                                             const CpuidTopology& topology);

}  // namespace anykvm::vmm
