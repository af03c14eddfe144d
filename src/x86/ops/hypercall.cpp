// VMCALL and VMMCALL as KVM's hypercalls (Linux: Documentation/virt/kvm/x86/hypercalls.rst).

#include <linux/kvm_para.h>
#include <sched.h>

#include "x86/mmu/access.h"
#include "x86/ops/ops.h"

namespace anykvm::x86 {
namespace {

// The last byte of 0F 01 C1 (VMCALL, Intel) and 0F 01 D9 (VMMCALL, AMD).
constexpr u8 kVmcall = 0xc1, kVmmcall = 0xd9;
constexpr unsigned kLength = 3;

i64 hypercall(const CpuState& state, u64 number) {
  if (state.cpl != 0) return -KVM_EPERM;
  switch (number) {
    // The instruction ends a block, after which pending interrupts are looked for: all that this call asks
    // for.
    case KVM_HC_VAPIC_POLL_IRQ:
      return 0;
    case KVM_HC_SCHED_YIELD:
      sched_yield();
      return 0;
    default:
      return -KVM_ENOSYS;
  }
}

// The other vendor's instruction becomes this one's, and is executed again
// (KVM_X86_QUIRK_FIX_HYPERCALL_INSN).
Guest<void> patch(Cpu& cpu, u8 native) {
  CpuState& state = cpu.state();
  const u64 mask = state.code64() ? low_bits(64) : low_bits(32);
  const u64 rip = (state.rip - kLength) & mask;
  const u8 bytes[kLength] = {0x0f, 0x01, native};
  Gva address = TRY(linear_address(state, kCs, rip, kLength, Access::kRead));
  TRY(write_linear(cpu, address, bytes, kLength));
  state.rip = rip;
  return {};
}

}  // namespace

Guest<void> op_hypercall(Cpu& cpu, const Insn& insn) {
  CpuState& state = cpu.state();
  const u8 native = cpu.model().intel() ? kVmcall : kVmmcall;
  // A model without a vendor takes both.
  const bool foreign =
      insn.length >= kLength && !cpu.model().entries().empty() && insn.bytes[insn.length - 1] != native;
  if (foreign && !cpu.platform().fixes_hypercalls()) return GuestStop::ud();
  if (foreign) return patch(cpu, native);
  u64 width = insn.code_bits == 64 ? low_bits(64) : low_bits(32);
  state.gpr[kRax] = static_cast<u64>(hypercall(state, state.gpr[kRax] & width)) & width;
  return {};
}

}  // namespace anykvm::x86
