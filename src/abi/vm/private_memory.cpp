// KVM_CREATE_GUEST_MEMFD, KVM_SET_MEMORY_ATTRIBUTES.
#include <errno.h>

#include "abi/handlers.h"
#include "abi/objects.h"
#include "core/guest_memory.h"
#include "core/vm.h"

namespace anykvm::abi::vm {

Result<long> create_guest_memfd(core::Vm& vm, const kvm_create_guest_memfd& request) {
  if (request.flags) return Error{EINVAL, "unknown flags"};
  Object object;
  object.guest_memory = TRY(core::GuestMemory::create(vm.weak_from_this(), request.size));
  Fd fd = object.guest_memory->take_descriptor();
  return add_object(std::move(fd), std::move(object));
}

Result<long> set_memory_attributes(core::Vm& vm, const kvm_memory_attributes& request) {
  const u64 supported = vm.has_private_memory() ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0;
  if (request.flags) return Error{EINVAL, "flags must be 0"};
  if (request.attributes & ~supported) return Error{EINVAL, "unknown attributes"};
  if (request.size == 0 || request.address + request.size < request.address)
    return Error{EINVAL, "an empty range, or one that wraps around"};
  if (request.address % kPageSize || request.size % kPageSize) return Error{EINVAL, "not whole pages"};
  TRY(vm.set_private(request.address, request.address + request.size, request.attributes != 0));
  return 0;
}

}  // namespace anykvm::abi::vm
