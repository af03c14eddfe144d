// KVM_GET_API_VERSION, KVM_CHECK_EXTENSION, KVM_GET_VCPU_MMAP_SIZE.
#include <errno.h>

#include <algorithm>
#include <thread>

#include "abi/handlers.h"
#include "core/dirty_ring.h"
#include "core/memory_slots.h"
#include "core/nested_state.h"
#include "core/shared_page.h"
#include "core/vm.h"
#include "core/xen/interface.h"
#include "irqchip/routing.h"
#include "x86/state/cpu_state.h"
#include "x86/sys/cpu_model.h"

namespace anykvm::abi {
namespace {

long recommended_vcpus() { return std::clamp<long>(std::thread::hardware_concurrency(), 1, core::kMaxVcpus); }

}  // namespace

long capability(u64 number) {
  switch (number) {
#define ANYKVM_CAPABILITY(name, value) \
  case name:                           \
    return static_cast<long>(value);
#include "abi/capabilities.def"
#undef ANYKVM_CAPABILITY
    default:
      return 0;
  }
}

namespace system {

Result<long> get_api_version(System&, u64 argument) {
  if (argument) return Error{EINVAL, "the argument must be 0"};
  return KVM_API_VERSION;
}

Result<long> check_extension(System&, u64 number) { return capability(number); }

Result<long> get_vcpu_mmap_size(System&, u64 argument) {
  if (argument) return Error{EINVAL, "the argument must be 0"};
  return core::kVcpuMmapSize;
}

}  // namespace system

namespace vm {

Result<long> check_extension(core::Vm& vm, u64 number) {
  const bool private_memory = number == KVM_CAP_MEMORY_ATTRIBUTES || number == KVM_CAP_GUEST_MEMFD;
  if (number == KVM_CAP_X86_APIC_BUS_CYCLES_NS) return static_cast<long>(vm.apic_bus_cycle_ns());
  if (number == KVM_CAP_MULTI_ADDRESS_SPACE && vm.has_private_memory()) return 1;
  return private_memory && !vm.has_private_memory() ? 0 : capability(number);
}

}  // namespace vm
}  // namespace anykvm::abi
