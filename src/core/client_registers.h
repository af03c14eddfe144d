#pragma once
// The register structures of the KVM ABI, from and to a vCPU's state.
// Owner: nobody; functions over a Vcpu whose mutex the caller holds.

#include <linux/kvm.h>

#include "base/expected.h"
#include "base/types.h"

namespace anykvm::core {

class Vcpu;

kvm_regs get_regs(Vcpu& vcpu);
void set_regs(Vcpu& vcpu, const kvm_regs& regs);

kvm_sregs get_sregs(Vcpu& vcpu);
kvm_sregs2 get_sregs2(Vcpu& vcpu);
// EINVAL, and no change, for a state that no CPU can be in.
Result<> set_sregs(Vcpu& vcpu, const kvm_sregs& sregs);
Result<> set_sregs2(Vcpu& vcpu, const kvm_sregs2& sregs);

kvm_vcpu_events get_vcpu_events(Vcpu& vcpu);
Result<> set_vcpu_events(Vcpu& vcpu, const kvm_vcpu_events& events);

// KVM_CAP_SYNC_REGS: `fields` are bits KVM_SYNC_X86_*.
Result<> load_synced_registers(Vcpu& vcpu, const kvm_sync_regs& from, u64 fields);
void store_synced_registers(Vcpu& vcpu, kvm_sync_regs& to, u64 fields);

}  // namespace anykvm::core
