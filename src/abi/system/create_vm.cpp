// KVM_CREATE_VM.
#include "abi/handlers.h"
#include "abi/objects.h"
#include "core/vm.h"

namespace anykvm::abi::system {

Result<long> create_vm(System&, u64 type) {
  Object object;
  object.vm = TRY(core::Vm::create(type));
  return add_object(TRY(make_handle("anykvm-vm")), std::move(object));
}

}  // namespace anykvm::abi::system
