// Hyper-V's interface: KVM_GET_SUPPORTED_HV_CPUID (KVM API 4.118), KVM_HYPERV_EVENTFD (4.115) and the
// capabilities of a vCPU.
#include <errno.h>

#include "abi/client_list.h"
#include "abi/cpuid_entries.h"
#include "abi/handlers.h"
#include "core/hyperv/features.h"
#include "core/vcpu.h"
#include "core/vm.h"

namespace anykvm::abi {
namespace {

// With too little room the client's count stays as it is, as in the kernel.
Result<long> write_supported(ClientPtr<kvm_cpuid2> list, bool has_apic) {
  const auto entries = client_cpuid(core::hyperv::supported_cpuid(has_apic));
  const ClientPtr<u32> count(list.address());
  const u32 room = TRY(count.read());
  if (room < entries.size()) return Error{E2BIG, "the client's list is too short"};
  TRY(write_items(count, room, items_after<kvm_cpuid_entry2>(list, offsetof(kvm_cpuid2, entries)), entries));
  return 0;
}

}  // namespace

Result<long> system::get_supported_hv_cpuid(System&, ClientPtr<kvm_cpuid2> list) {
  return write_supported(list, true);
}

Result<long> vm::hyperv_eventfd(core::Vm& vm, const kvm_hyperv_eventfd& request) {
  TRY(vm.hyperv().change_event(request));
  return 0;
}

namespace vcpu {

Result<long> get_supported_hv_cpuid(core::Vcpu& vcpu, ClientPtr<kvm_cpuid2> list) {
  return write_supported(list, vcpu.lapic() != nullptr);
}

Result<long> enable_hyperv_synic(core::Vcpu& vcpu, const kvm_enable_cap&) {
  TRY(vcpu.hyperv().activate_synic(false));
  return 0;
}

Result<long> enable_hyperv_synic2(core::Vcpu& vcpu, const kvm_enable_cap& request) {
  if (request.args[0]) return Error{EINVAL, "the argument must be 0"};
  TRY(vcpu.hyperv().activate_synic(true));
  return 0;
}

Result<long> enable_hyperv_enforce_cpuid(core::Vcpu& vcpu, const kvm_enable_cap& request) {
  vcpu.hyperv().enforce_cpuid(request.args[0] != 0);
  return 0;
}

}  // namespace vcpu
}  // namespace anykvm::abi
