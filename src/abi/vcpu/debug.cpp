// KVM_SET_GUEST_DEBUG (KVM API 4.87).
#include <errno.h>

#include "abi/handlers.h"
#include "core/vcpu.h"

namespace anykvm::abi::vcpu {
namespace {

// #DB or #BP for the guest at its next entry.
Result<> inject(core::Vcpu& vcpu, u8 vector) {
  auto& exception = vcpu.state().events.exception;
  if (exception.pending || exception.injected) return Error{EBUSY, "an exception waits to be delivered"};
  exception = {};
  exception.injected = true;
  exception.vector = vector;
  return {};
}

x86::GuestDebug guest_debug(const kvm_guest_debug& request) {
  x86::GuestDebug debug;
  if (!(request.control & KVM_GUESTDBG_ENABLE)) return debug;
  debug.single_step = request.control & KVM_GUESTDBG_SINGLESTEP;
  debug.block_interrupts = request.control & KVM_GUESTDBG_BLOCKIRQ;
  debug.software_breakpoints = request.control & KVM_GUESTDBG_USE_SW_BP;
  debug.hardware_breakpoints = request.control & KVM_GUESTDBG_USE_HW_BP;
  for (unsigned i = 0; i < 4; ++i) debug.breakpoints.address[i] = request.arch.debugreg[i];
  debug.breakpoints.control = request.arch.debugreg[7];
  return debug;
}

}  // namespace

// Unknown flags are ignored, as in the kernel; KVM_CAP_SET_GUEST_DEBUG2 tells which are known.
Result<long> set_guest_debug(core::Vcpu& vcpu, const kvm_guest_debug& request) {
  if (request.control & KVM_GUESTDBG_INJECT_DB)
    TRY(inject(vcpu, x86::kVectorDb));
  else if (request.control & KVM_GUESTDBG_INJECT_BP)
    TRY(inject(vcpu, x86::kVectorBp));
  vcpu.cpu().set_guest_debug(guest_debug(request));
  vcpu.cpu().state_replaced();
  return 0;
}

}  // namespace anykvm::abi::vcpu
