// KVM_ENABLE_CAP of a VM, and the capabilities that are no more than one setting.
#include <errno.h>

#include "abi/handlers.h"
#include "core/vm.h"

namespace anykvm::abi::vm {

Result<long> enable_cap(core::Vm& vm, const kvm_enable_cap& request) {
  if (request.flags) return Error{EINVAL, "flags must be 0"};
  switch (request.cap) {
#define ANYKVM_ENABLE_Vm(number, handler) \
  case number:                            \
    return handler(vm, request);
#define ANYKVM_ENABLE_Vcpu(number, handler)
#define ANYKVM_ENABLED_CAPABILITY(klass, number, handler) ANYKVM_ENABLE_##klass(number, handler)
#include "abi/enabled_capabilities.def"
#undef ANYKVM_ENABLED_CAPABILITY
    default:
      return Error{EINVAL, "not a capability that is enabled on a VM"};
  }
}

Result<long> enable_max_vcpu_id(core::Vm& vm, const kvm_enable_cap& request) {
  TRY(vm.set_max_vcpu_ids(request.args[0]));
  return 0;
}

Result<long> enable_split_irqchip(core::Vm& vm, const kvm_enable_cap& request) {
  TRY(vm.create_split_irqchip(request.args[0]));
  return 0;
}

Result<long> enable_x2apic_api(core::Vm& vm, const kvm_enable_cap& request) {
  constexpr u64 kKnown = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
  if (request.args[0] & ~kKnown) return Error{EINVAL, "unknown x2APIC flags"};
  vm.enable_x2apic_api(request.args[0]);
  return 0;
}

Result<long> enable_apic_bus_cycles_ns(core::Vm& vm, const kvm_enable_cap& request) {
  TRY(vm.set_apic_bus_cycle_ns(request.args[0]));
  return 0;
}

// The older capability takes any bits. What is off stays off.
Result<long> enable_disable_quirks(core::Vm& vm, const kvm_enable_cap& request) {
  vm.disable_quirks(request.args[0] & kQuirks);
  return 0;
}

Result<long> enable_disable_quirks2(core::Vm& vm, const kvm_enable_cap& request) {
  if (request.args[0] & ~kQuirks) return Error{EINVAL, "unknown quirks"};
  return enable_disable_quirks(vm, request);
}

Result<long> enable_halt_poll(core::Vm& vm, const kvm_enable_cap& request) {
  constexpr u64 kMost = ~u32{0};
  if (request.args[0] > kMost) return Error{EINVAL, "longer than any vCPU may poll"};
  vm.set_halt_poll_ns(request.args[0]);
  return 0;
}

Result<long> enable_disable_exits(core::Vm& vm, const kvm_enable_cap& request) {
  if (request.args[0] & ~kDisableExits) return Error{EINVAL, "exits that cannot be switched off"};
  vm.disable_exits(request.args[0]);
  return 0;
}

// Such failures always exit here; what this adds is the instruction's bytes.
Result<long> enable_exit_on_emulation_failure(core::Vm& vm, const kvm_enable_cap& request) {
  if (request.args[0] > 1) return Error{EINVAL, "0 or 1"};
  vm.tell_failed_instructions(request.args[0] != 0);
  return 0;
}

Result<long> enable_exception_payload(core::Vm& vm, const kvm_enable_cap& request) {
  vm.show_exception_payloads(request.args[0] != 0);
  return 0;
}

Result<long> enable_triple_fault_event(core::Vm& vm, const kvm_enable_cap& request) {
  vm.show_triple_faults(request.args[0] != 0);
  return 0;
}

Result<long> enable_exit_hypercall(core::Vm& vm, const kvm_enable_cap& request) {
  if (request.args[0] & ~kClientHypercalls) return Error{EINVAL, "hypercalls that the client cannot answer"};
  vm.set_client_hypercalls(request.args[0]);
  return 0;
}

Result<long> enable_platform_info(core::Vm& vm, const kvm_enable_cap& request) {
  vm.set_platform_info_readable(request.args[0] != 0);
  return 0;
}

Result<long> enable_msr_exits(core::Vm& vm, const kvm_enable_cap& request) {
  constexpr u64 kKnown = KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER;
  if (request.args[0] & ~kKnown) return Error{EINVAL, "unknown reasons for MSR exits"};
  vm.set_msr_exits(static_cast<u32>(request.args[0]));
  return 0;
}

}  // namespace anykvm::abi::vm
