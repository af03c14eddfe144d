// KVM_GET_STATS_FD (KVM API 4.133), of VMs and vCPUs.
#include "abi/handlers.h"
#include "core/vcpu.h"
#include "core/vm.h"

namespace anykvm::abi {

Result<long> vm::get_stats_fd(core::Vm& vm, u64) {
  Fd fd = TRY(vm.stats_descriptor());
  return fd.release();
}

Result<long> vcpu::get_stats_fd(core::Vcpu& vcpu, u64) {
  Fd fd = TRY(vcpu.stats_descriptor());
  return fd.release();
}

}  // namespace anykvm::abi
