// KVM_ENABLE_CAP of a vCPU.
#include <errno.h>

#include "abi/handlers.h"
#include "core/vcpu.h"

namespace anykvm::abi::vcpu {

Result<long> enable_cap(core::Vcpu& vcpu, const kvm_enable_cap& request) {
  if (request.flags) return Error{EINVAL, "flags must be 0"};
  switch (request.cap) {
#define ANYKVM_ENABLE_Vm(number, handler)
#define ANYKVM_ENABLE_Vcpu(number, handler) \
  case number:                              \
    return handler(vcpu, request);
#define ANYKVM_ENABLED_CAPABILITY(klass, number, handler) ANYKVM_ENABLE_##klass(number, handler)
#include "abi/enabled_capabilities.def"
#undef ANYKVM_ENABLED_CAPABILITY
    default:
      return Error{EINVAL, "not a capability that is enabled on a vCPU"};
  }
}

Result<long> enable_enforce_pv_features(core::Vcpu& vcpu, const kvm_enable_cap& request) {
  vcpu.enforce_pv_features(request.args[0] != 0);
  return 0;
}

}  // namespace anykvm::abi::vcpu
