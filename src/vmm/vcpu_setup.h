#pragma once
// The state a vCPU has when its thread starts: CPUID, local APIC wiring, memory types, and for the first one
// the kernel's entry. Owner: the machine while it builds its vCPUs. One thread.

#include <vector>

#include "vmm/cpuid.h"
#include "vmm/failure.h"
#include "vmm/kvm_backend.h"
#include "vmm/vcpu.h"

namespace anykvm::vmm {

class VcpuSetup {
 public:
  static Outcome<VcpuSetup> create(const KvmFd& kvm, u32 cpus);
  Outcome<> apply(const Vcpu& vcpu) const;
  Outcome<> apply_boot_state(const Vcpu& vcpu, Gpa entry) const;

 private:
  VcpuSetup() = default;
  std::vector<kvm_cpuid_entry2> m_supported;
  u32 m_cpus = 0;
  bool m_tsc_deadline = false;
};

}  // namespace anykvm::vmm
