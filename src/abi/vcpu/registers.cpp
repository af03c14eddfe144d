// General, system and debug registers, pending events, address translation.
#include <errno.h>

#include "abi/handlers.h"
#include "core/client_registers.h"
#include "core/vcpu.h"
#include "core/vm.h"
#include "x86/mmu/paging.h"

namespace anykvm::abi::vcpu {

Result<long> get_regs(core::Vcpu& vcpu, kvm_regs& regs) {
  regs = core::get_regs(vcpu);
  return 0;
}

Result<long> set_regs(core::Vcpu& vcpu, const kvm_regs& regs) {
  core::set_regs(vcpu, regs);
  return 0;
}

Result<long> get_sregs(core::Vcpu& vcpu, kvm_sregs& sregs) {
  sregs = core::get_sregs(vcpu);
  return 0;
}

Result<long> set_sregs(core::Vcpu& vcpu, const kvm_sregs& sregs) {
  TRY(core::set_sregs(vcpu, sregs));
  return 0;
}

Result<long> get_sregs2(core::Vcpu& vcpu, kvm_sregs2& sregs) {
  sregs = core::get_sregs2(vcpu);
  return 0;
}

Result<long> set_sregs2(core::Vcpu& vcpu, const kvm_sregs2& sregs) {
  TRY(core::set_sregs2(vcpu, sregs));
  return 0;
}

Result<long> get_debugregs(core::Vcpu& vcpu, kvm_debugregs& regs) {
  const x86::CpuState& state = vcpu.state();
  for (unsigned i = 0; i < state.dr.size(); ++i) regs.db[i] = state.dr[i];
  regs.dr6 = state.dr6;
  regs.dr7 = state.dr7;
  return 0;
}

Result<long> set_debugregs(core::Vcpu& vcpu, const kvm_debugregs& regs) {
  if (regs.flags) return Error{EINVAL, "unknown debug register flags"};
  if (regs.dr6 >> 32 || regs.dr7 >> 32) return Error{EINVAL, "DR6 and DR7 have 32 bits"};
  x86::CpuState& state = vcpu.state();
  for (unsigned i = 0; i < state.dr.size(); ++i) state.dr[i] = regs.db[i];
  state.dr6 = regs.dr6 | x86::kDr6Fixed1;
  state.dr7 = regs.dr7 | x86::kDr7Fixed1;
  vcpu.cpu().state_replaced();
  return 0;
}

Result<long> get_vcpu_events(core::Vcpu& vcpu, kvm_vcpu_events& events) {
  events = core::get_vcpu_events(vcpu);
  return 0;
}

Result<long> set_vcpu_events(core::Vcpu& vcpu, const kvm_vcpu_events& events) {
  TRY(core::set_vcpu_events(vcpu, events));
  return 0;
}

Result<long> translate(core::Vcpu& vcpu, kvm_translation& translation) {
  const auto found =
      x86::translate_for_debug(vcpu.state(), vcpu.vm().machine().memory(), Gva(translation.linear_address));
  // All ones is the kernel's "no address", also where it would be its own translation.
  translation.valid = found.valid && translation.linear_address != ~u64{0};
  translation.physical_address = translation.valid ? found.gpa.value : ~u64{0};
  // The kernel answers these two the same way for every address.
  translation.writeable = 1;
  translation.usermode = 0;
  return 0;
}

}  // namespace anykvm::abi::vcpu
