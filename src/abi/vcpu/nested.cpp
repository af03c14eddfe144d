// Nested guests: KVM_GET_NESTED_STATE, KVM_SET_NESTED_STATE.
#include <errno.h>

#include <cstddef>

#include "abi/handlers.h"
#include "core/nested_state.h"

namespace anykvm::abi::vcpu {
namespace {

using core::NestedData;

ClientPtr<u32> size_field(ClientPtr<kvm_nested_state> state) {
  return ClientPtr<u32>(state.address() + offsetof(kvm_nested_state, size));
}

ClientPtr<NestedData> data_of(ClientPtr<kvm_nested_state> state) {
  return ClientPtr<NestedData>(state.address() + offsetof(kvm_nested_state, data));
}

}  // namespace

Result<long> get_nested_state(core::Vcpu& vcpu, ClientPtr<kvm_nested_state> to) {
  const u32 room = TRY(size_field(to).read());
  NestedData data;
  const kvm_nested_state header = core::get_nested_state(vcpu, data);
  if (room < header.size) {
    TRY(size_field(to).write(header.size));
    return Error{E2BIG, "the nested state needs more room"};
  }
  TRY(to.write(header));
  if (header.size == core::kNestedStateSize) TRY(data_of(to).write(data));
  return 0;
}

Result<long> set_nested_state(core::Vcpu& vcpu, ClientPtr<kvm_nested_state> from) {
  const kvm_nested_state header = TRY(from.read());
  if (header.size < sizeof header) return Error{EINVAL, "the nested state is shorter than its header"};
  const bool guest_mode = header.flags & KVM_STATE_NESTED_GUEST_MODE;
  if ((header.flags & KVM_STATE_NESTED_RUN_PENDING) && !guest_mode)
    return Error{EINVAL, "no run can be pending outside guest mode"};
  NestedData data{};
  if (guest_mode && header.size >= core::kNestedStateSize) data = TRY(data_of(from).read());
  TRY(core::set_nested_state(vcpu, header, data));
  return 0;
}

}  // namespace anykvm::abi::vcpu
