// KVM_HAS_DEVICE_ATTR and KVM_GET_DEVICE_ATTR of /dev/kvm (KVM API 4.80, KVM_CAP_SYS_ATTRIBUTES).
#include <errno.h>

#include "abi/handlers.h"
#include "x86/state/xsave.h"

namespace anykvm::abi::system {
namespace {

Result<u64> value_of(const kvm_device_attr& attribute) {
  if (attribute.group != 0 || attribute.attr != KVM_X86_XCOMP_GUEST_SUPP)
    return Error{ENXIO, "no such attribute of the system"};
  return x86::guest_xcr0_offered();
}

}  // namespace

Result<long> has_device_attr(System&, const kvm_device_attr& attribute) {
  TRY(value_of(attribute));
  return 0;
}

Result<long> get_device_attr(System&, const kvm_device_attr& attribute) {
  TRY(ClientPtr<u64>(attribute.addr).write(TRY(value_of(attribute))));
  return 0;
}

}  // namespace anykvm::abi::system
