// Xen's interface to HVM guests (KVM API 4.126 to 4.130, 5).
#include "abi/handlers.h"
#include "core/vcpu.h"
#include "core/vm.h"

namespace anykvm::abi {

namespace vm {

Result<long> xen_hvm_config(core::Vm& vm, const kvm_xen_hvm_config& config) {
  TRY(vm.xen().configure(config));
  return 0;
}

Result<long> xen_hvm_set_attr(core::Vm& vm, const kvm_xen_hvm_attr& attribute) {
  Result<> result;
  vm.with_memory([&] { result = vm.xen().set_attribute(attribute); });
  TRY(std::move(result));
  return 0;
}

Result<long> xen_hvm_get_attr(core::Vm& vm, kvm_xen_hvm_attr& attribute) {
  TRY(vm.xen().get_attribute(attribute));
  return 0;
}

Result<long> xen_hvm_evtchn_send(core::Vm& vm, const kvm_irq_routing_xen_evtchn& event) {
  TRY(vm.xen().client_sends(event));
  return 0;
}

}  // namespace vm

namespace vcpu {

Result<long> xen_vcpu_set_attr(core::Vcpu& vcpu, const kvm_xen_vcpu_attr& attribute) {
  Result<> result;
  vcpu.cpu().visit_memory([&] { result = vcpu.xen().set_attribute(attribute); });
  TRY(std::move(result));
  return 0;
}

Result<long> xen_vcpu_get_attr(core::Vcpu& vcpu, kvm_xen_vcpu_attr& attribute) {
  Result<> result;
  vcpu.cpu().visit_memory([&] { result = vcpu.xen().get_attribute(attribute); });
  TRY(std::move(result));
  return 0;
}

}  // namespace vcpu
}  // namespace anykvm::abi
