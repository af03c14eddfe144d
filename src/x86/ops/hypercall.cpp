// VMCALL and VMMCALL as KVM's hypercalls (Linux: Documentation/virt/kvm/x86/hypercalls.rst).

#include <linux/kvm_para.h>

#include "x86/ops/ops.h"

namespace anykvm::x86 {
namespace {

i64 hypercall(const CpuState& state, u64 number) {
  if (state.cpl != 0) return -KVM_EPERM;
  switch (number) {
    // The instruction ends a block, after which pending interrupts are looked for: all that this call asks
    // for.
    case KVM_HC_VAPIC_POLL_IRQ:
      return 0;
    default:
      return -KVM_ENOSYS;
  }
}

}  // namespace

Guest<void> op_hypercall(Cpu& cpu, const Insn& insn) {
  CpuState& state = cpu.state();
  u64 width = insn.code_bits == 64 ? low_bits(64) : low_bits(32);
  state.gpr[kRax] = static_cast<u64>(hypercall(state, state.gpr[kRax] & width)) & width;
  return {};
}

}  // namespace anykvm::x86
