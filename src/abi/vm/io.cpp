// ioeventfds, ioregions and coalesced zones.
#include "abi/handlers.h"
#include "core/vm.h"

namespace anykvm::abi::vm {

Result<long> ioeventfd(core::Vm& vm, const kvm_ioeventfd& request) {
  TRY(vm.io_events().change(request));
  return 0;
}

Result<long> set_ioregion(core::Vm& vm, const kvm_ioregion& request) {
  TRY(vm.io_regions().set(request));
  return 0;
}

Result<long> register_coalesced_mmio(core::Vm& vm, const kvm_coalesced_mmio_zone& zone) {
  TRY(vm.coalesced_io().add(zone));
  return 0;
}

Result<long> unregister_coalesced_mmio(core::Vm& vm, const kvm_coalesced_mmio_zone& zone) {
  TRY(vm.coalesced_io().remove(zone));
  return 0;
}

}  // namespace anykvm::abi::vm
