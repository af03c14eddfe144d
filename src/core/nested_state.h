#pragma once
// KVM_GET_NESTED_STATE and KVM_SET_NESTED_STATE (KVM API 4.114, 4.115) in SVM's format: which VMCB runs, what
// VMRUN read of it, and the hypervisor's registers, while the vCPU's are those of its guest. Owner: nobody;
// functions over a Vcpu whose mutex the caller holds.

#include <linux/kvm.h>

#include "base/expected.h"
#include "base/types.h"

namespace anykvm::core {

class Vcpu;

using NestedData = kvm_svm_nested_state_data;
inline constexpr std::size_t kNestedStateSize = sizeof(kvm_nested_state) + sizeof(NestedData);

// `size` is what the state takes: with `data` in guest mode, else without.
kvm_nested_state get_nested_state(Vcpu& vcpu, NestedData& data);
// EINVAL, and no change, for a state that no CPU can be in. `data` is only looked at in guest mode.
Result<> set_nested_state(Vcpu& vcpu, const kvm_nested_state& header, const NestedData& data);

}  // namespace anykvm::core
