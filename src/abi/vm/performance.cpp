// Performance counters: KVM_CAP_PMU_CAPABILITY and KVM_SET_PMU_EVENT_FILTER.
#include <errno.h>

#include "abi/client_list.h"
#include "abi/handlers.h"
#include "core/vm.h"

namespace anykvm::abi::vm {

Result<long> enable_pmu_capability(core::Vm& vm, const kvm_enable_cap& request) {
  if (request.args[0] & ~u64{KVM_PMU_CAP_DISABLE}) return Error{EINVAL, "unknown PMU capabilities"};
  TRY(vm.set_performance_counters(!(request.args[0] & KVM_PMU_CAP_DISABLE)));
  return 0;
}

Result<long> set_pmu_event_filter(core::Vm& vm, ClientPtr<kvm_pmu_event_filter> filter) {
  const kvm_pmu_event_filter header = TRY(filter.read());
  TRY(core::CounterFilter::check(header));
  const auto events = TRY(read_items(items_after<u64>(filter, sizeof header), header.nevents));
  vm.set_counter_filter(TRY(core::CounterFilter::rules_of(header, events)));
  return 0;
}

}  // namespace anykvm::abi::vm
