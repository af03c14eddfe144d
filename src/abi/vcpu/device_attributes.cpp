// KVM_HAS/GET/SET_DEVICE_ATTR of a vCPU: KVM_VCPU_TSC_CTRL (Linux: Documentation/virt/kvm/devices/vcpu.rst,
// 4).
#include <errno.h>

#include "abi/handlers.h"
#include "core/vcpu.h"

namespace anykvm::abi::vcpu {
namespace {

// Flags are ignored, as in the kernel.
Result<> check(const kvm_device_attr& attribute) {
  if (attribute.group != KVM_VCPU_TSC_CTRL || attribute.attr != KVM_VCPU_TSC_OFFSET)
    return Error{ENXIO, "no such attribute of a vCPU"};
  return {};
}

}  // namespace

Result<long> has_device_attr(core::Vcpu&, const kvm_device_attr& attribute) {
  TRY(check(attribute));
  return 0;
}

Result<long> get_device_attr(core::Vcpu& vcpu, const kvm_device_attr& attribute) {
  TRY(check(attribute));
  TRY(ClientPtr<u64>(attribute.addr).write(vcpu.tsc_offset()));
  return 0;
}

Result<long> set_device_attr(core::Vcpu& vcpu, const kvm_device_attr& attribute) {
  TRY(check(attribute));
  vcpu.set_tsc_offset(TRY(ClientPtr<u64>(attribute.addr).read()));
  return 0;
}

}  // namespace anykvm::abi::vcpu
