// VMCALL and VMMCALL (Linux: Documentation/virt/kvm/x86/hypercalls.rst); what they ask for is the platform's
// business.

#include <Zydis/Zydis.h>

#include "x86/mmu/access.h"
#include "x86/nested/svm/exits.h"
#include "x86/ops/ops.h"

namespace anykvm::x86 {
namespace {

// The last byte of 0F 01 C1 (VMCALL, Intel) and 0F 01 D9 (VMMCALL, AMD).
constexpr u8 kVmcall = 0xc1, kVmmcall = 0xd9;
constexpr unsigned kLength = 3;

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
  if (insn.mnemonic == ZYDIS_MNEMONIC_VMMCALL && cpu.state().svm.guest_mode) {
    const std::optional<Hypercall> done = cpu.platform().nested_hypercall();
    if (done == Hypercall::kUndefined) return GuestStop::ud();
    if (done) return {};
    TRY(svm::check(cpu, Intercept::kVmmcall));
  }
  const u8 native = cpu.model().intel() ? kVmcall : kVmmcall;
  // A model without a vendor takes both.
  const bool foreign =
      insn.length >= kLength && !cpu.model().entries().empty() && insn.bytes[insn.length - 1] != native;
  if (foreign && !cpu.platform().fixes_hypercalls()) return GuestStop::ud();
  if (foreign) return patch(cpu, native);
  const std::optional<u32> answered = cpu.answered_hypercall();
  u32 client_call = answered.value_or(0);
  switch (answered ? Hypercall::kClient : cpu.platform().hypercall(&client_call)) {
    case Hypercall::kDone:
      return {};
    case Hypercall::kUndefined:
      return GuestStop::ud();
    case Hypercall::kClient:
      cpu.platform().hypercall_answered(client_call, TRY(cpu.client_hypercall(client_call)));
      return {};
  }
  return {};
}

}  // namespace anykvm::x86
