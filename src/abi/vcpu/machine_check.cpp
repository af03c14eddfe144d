// KVM_X86_GET_MCE_CAP_SUPPORTED, KVM_X86_SETUP_MCE, KVM_X86_SET_MCE (KVM API 4.105 to 4.107).
#include "x86/sys/machine_check.h"

#include <errno.h>

#include "abi/handlers.h"
#include "core/vcpu.h"

namespace anykvm::abi {

Result<long> system::get_mce_cap_supported(System&, u64& capabilities) {
  capabilities = x86::kMcgSupported;
  return 0;
}

namespace vcpu {

Result<long> setup_mce(core::Vcpu& vcpu, const u64& capabilities) {
  if (!x86::set_up_machine_check(vcpu.cpu(), capabilities))
    return Error{EINVAL, "no such machine-check capabilities, or too many banks"};
  if (vcpu.lapic()) vcpu.lapic()->set_has_cmci(capabilities & x86::kMcgCmciP);
  return 0;
}

Result<long> set_mce(core::Vcpu& vcpu, const kvm_x86_mce& mce) {
  const x86::MachineCheckError error{mce.bank, mce.status, mce.addr, mce.misc, mce.mcg_status};
  switch (x86::report_machine_check(vcpu.cpu(), error)) {
    case x86::MachineCheckReport::kInvalid:
      return Error{EINVAL, "no such bank, or the error is not valid"};
    case x86::MachineCheckReport::kInterrupt:
      if (vcpu.lapic()) vcpu.lapic()->raise_cmci();
      return 0;
    case x86::MachineCheckReport::kDone:
      return 0;
  }
  return 0;
}

}  // namespace vcpu
}  // namespace anykvm::abi
