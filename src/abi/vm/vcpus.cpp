// KVM_CREATE_VCPU, KVM_SET_BOOT_CPU_ID, KVM_CREATE_DEVICE.
#include <errno.h>

#include "abi/handlers.h"
#include "abi/objects.h"
#include "core/vcpu.h"
#include "core/vm.h"

namespace anykvm::abi::vm {

Result<long> create_vcpu(core::Vm& vm, u64 id) {
  Object object;
  object.vcpu = TRY(vm.create_vcpu(id));
  Fd fd = object.vcpu->shared_page().take_descriptor();
  return add_object(std::move(fd), std::move(object));
}

// The chips of x86 have ioctls of their own; the kernel's only device of this kind is VFIO's.
Result<long> create_device(core::Vm&, kvm_create_device&) { return Error{ENODEV, "no such kind of device"}; }

Result<long> set_boot_cpu_id(core::Vm& vm, u64 id) {
  TRY(vm.set_boot_cpu(id));
  return 0;
}

}  // namespace anykvm::abi::vm
