// KVM_X86_SET_MSR_FILTER.
#include "abi/handlers.h"
#include "core/vm.h"

namespace anykvm::abi::vm {

Result<long> set_msr_filter(core::Vm& vm, const kvm_msr_filter& filter) {
  TRY(vm.msr_filter().set(filter));
  return 0;
}

}  // namespace anykvm::abi::vm
