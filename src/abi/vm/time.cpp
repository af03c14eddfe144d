// The VM's clock and its default TSC rate.
#include "abi/handlers.h"
#include "core/vm.h"

namespace anykvm::abi::vm {

Result<long> get_clock(core::Vm& vm, kvm_clock_data& data) {
  data = vm.clock().get();
  return 0;
}

Result<long> set_clock(core::Vm& vm, const kvm_clock_data& data) {
  TRY(vm.set_clock(data));
  return 0;
}

Result<long> get_tsc_khz(core::Vm& vm, u64) { return vm.default_tsc_khz(); }

Result<long> set_tsc_khz(core::Vm& vm, u64 khz) {
  TRY(vm.set_default_tsc_khz(static_cast<u32>(khz)));
  return 0;
}

}  // namespace anykvm::abi::vm
