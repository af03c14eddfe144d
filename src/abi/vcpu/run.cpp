// KVM_RUN and what decides how it ends.
#include <errno.h>

#include "abi/handlers.h"
#include "core/vcpu.h"

namespace anykvm::abi::vcpu {

Result<long> run(core::Vcpu& vcpu, u64 argument) {
  if (argument) return Error{EINVAL, "the argument must be 0"};
  TRY(vcpu.run());
  return 0;
}

// The set is the kernel's, of 8 bytes, whatever the C library's sigset_t is. A null pointer means: no mask.
Result<long> set_signal_mask(core::Vcpu& vcpu, ClientPtr<kvm_signal_mask> mask) {
  if (mask.address() == 0) {
    TRY(vcpu.set_signal_mask(std::nullopt));
    return 0;
  }
  const u32 length = TRY(ClientPtr<u32>(mask.address()).read());
  if (length != sizeof(core::SignalSet)) return Error{EINVAL, "a signal set has 8 bytes"};
  const u64 at = mask.address() + offsetof(kvm_signal_mask, sigset);
  TRY(vcpu.set_signal_mask(TRY(ClientPtr<core::SignalSet>(at).read())));
  return 0;
}

Result<long> interrupt(core::Vcpu& vcpu, const kvm_interrupt& interrupt) {
  TRY(vcpu.inject_interrupt(interrupt.irq));
  return 0;
}

Result<long> nmi(core::Vcpu& vcpu, u64) {
  vcpu.queue_nmi();
  return 0;
}

Result<long> smi(core::Vcpu& vcpu, u64) {
  vcpu.queue_smi();
  return 0;
}

// An INIT or SIPI that waits shows as what comes of it, so that it is not lost where the state goes.
Result<long> get_mp_state(core::Vcpu& vcpu, kvm_mp_state& state) {
  vcpu.accept_init_and_sipi();
  state.mp_state = vcpu.mp_state();
  return 0;
}

Result<long> set_mp_state(core::Vcpu& vcpu, const kvm_mp_state& state) {
  TRY(vcpu.set_mp_state(state.mp_state));
  return 0;
}

}  // namespace anykvm::abi::vcpu
