// INT n, INT3, INT1, INTO and IRET (SDM 2A).

#include <array>

#include "x86/mmu/access.h"
#include "x86/nested/svm/exits.h"
#include "x86/ops/ops.h"
#include "x86/sys/events.h"
#include "x86/sys/far_transfer.h"
#include "x86/sys/task_switch.h"

namespace anykvm::x86 {

namespace {

constexpr u64 kFlagsUserImage = kFlagsArithmetic | kFlagTf | kFlagDf | kFlagNt;

void replace_flags(CpuState& state, u64 image, u64 mask) {
  state.rflags = (state.rflags & ~mask) | (image & mask) | kFlagFixed1;
}

// After any IRET: NMIs are unmasked, and IF may have gone up.
void finish_iret(Cpu& cpu) {
  CpuState& state = cpu.state();
  if (state.events.nmi.masked) {
    state.events.nmi.masked = false;
    cpu.request(kAttentionEvent);  // another NMI may have come meanwhile
  }
  cpu.mode_changed();
  if (state.rflags & kFlagIf) cpu.interrupts_may_have_opened();
}

// --- INT n in virtual-8086 mode with CR4.VME, SDM 3B 20.3.3 ---

// Bit `vector` of the redirection bitmap, the 32 bytes below the I/O permission bitmap. Set: the
// protected-mode handler.
Guest<bool> redirected_to_protected(Cpu& cpu, u8 vector) {
  const Segment& tr = cpu.state().tr;
  constexpr u32 kIoMapBase = 0x66;
  if (!is_tss32(tr) || tr.limit < kIoMapBase + 1) return GuestStop::gp(0);
  u16 io_map = TRY(load<u16>(cpu, Gva((tr.base + kIoMapBase) & 0xffffffff), Privilege::kSystem));
  u32 offset = io_map - 32u + vector / 8u;
  if (io_map < 32 || offset > tr.limit) return GuestStop::gp(0);
  u8 map = TRY(load<u8>(cpu, Gva((tr.base + offset) & 0xffffffff), Privilege::kSystem));
  return has_bit(map, vector % 8);
}

// With IOPL below 3 the task's IF is VIF, and the image shows IOPL 3.
Guest<void> int_to_own_ivt(Cpu& cpu, u8 vector) {
  CpuState& state = cpu.state();
  bool virtual_if = state.iopl() < 3;
  u64 image = state.rflags;
  if (virtual_if) image = (image & ~u64{kFlagIf}) | kFlagIopl | (image & kFlagVif ? u64{kFlagIf} : 0);
  TRY(deliver_to_ivt(cpu, vector, static_cast<u16>(image)));
  state.rflags &= ~u64{virtual_if ? kFlagVif : kFlagIf};
  cpu.mode_changed();
  return {};
}

Guest<void> int_from_v86(Cpu& cpu, u8 vector) {
  CpuState& state = cpu.state();
  if ((state.cr4 & kCr4Vme) && !TRY(redirected_to_protected(cpu, vector))) return int_to_own_ivt(cpu, vector);
  if (state.iopl() < 3) return GuestStop::gp(0);
  return raise_interrupt(cpu, vector, EventKind::kSoftware);
}

// --- IRET by mode ---

struct RealFrame {
  u64 rip = 0, cs = 0, flags = 0;
};

Guest<RealFrame> peek_real_frame(Cpu& cpu, unsigned size) {
  std::array<u64, 3> items;
  TRY(peek_stack(cpu, 0, size, items));
  RealFrame frame{items[0], items[1], items[2]};
  if (frame.rip > cpu.state().segments[kCs].limit) return GuestStop::gp(0);
  return frame;
}

void return_in_paragraph_mode(CpuState& state, const RealFrame& frame, unsigned size) {
  state.gpr[kRsp] = popped_stack_pointer(state, 3 * size);
  set_paragraph_segment(state, kCs, static_cast<u16>(frame.cs));
  state.rip = frame.rip;
}

Guest<void> iret_real(Cpu& cpu, unsigned size) {
  CpuState& state = cpu.state();
  RealFrame frame = TRY(peek_real_frame(cpu, size));
  return_in_paragraph_mode(state, frame, size);
  u64 mask = kFlagsUserImage | kFlagIf | kFlagIopl;
  if (size == 4) mask |= kFlagRf | kFlagAc | kFlagId;
  replace_flags(state, frame.flags, mask);
  finish_iret(cpu);
  return {};
}

// SDM 3B table 20-2. With VME and IOPL below 3, IF of the image goes to VIF.
Guest<void> iret_v86(Cpu& cpu, unsigned size) {
  CpuState& state = cpu.state();
  bool virtual_if = state.iopl() < 3;
  if (virtual_if && (!(state.cr4 & kCr4Vme) || size != 2)) return GuestStop::gp(0);
  RealFrame frame = TRY(peek_real_frame(cpu, size));
  bool if_image = frame.flags & kFlagIf;
  if (virtual_if && ((frame.flags & kFlagTf) || (if_image && (state.rflags & kFlagVip))))
    return GuestStop::gp(0);
  return_in_paragraph_mode(state, frame, size);
  u64 mask = kFlagsUserImage;
  if (size == 4) mask |= kFlagRf | kFlagAc | kFlagId;
  replace_flags(state, frame.flags, virtual_if ? mask : mask | kFlagIf);
  if (virtual_if) replace_flags(state, if_image ? u64{kFlagVif} : 0, kFlagVif);
  finish_iret(cpu);
  return {};
}

Guest<void> iret_to_v86(Cpu& cpu, u64 flags) {
  CpuState& state = cpu.state();
  std::array<u64, 9> items;  // EIP, CS, EFLAGS, ESP, SS, ES, DS, FS, GS
  TRY(peek_stack(cpu, 0, 4, items));
  if (items[0] > 0xffff) return GuestStop::gp(0);
  u64 all =
      kFlagsUserImage | kFlagIf | kFlagIopl | kFlagRf | kFlagVm | kFlagAc | kFlagVif | kFlagVip | kFlagId;
  replace_flags(state, flags, all);
  constexpr std::array kOrder = {kSs, kEs, kDs, kFs, kGs};
  set_paragraph_segment(state, kCs, static_cast<u16>(items[1]));
  for (unsigned i = 0; i < kOrder.size(); ++i)
    set_paragraph_segment(state, kOrder[i], static_cast<u16>(items[4 + i]));
  state.gpr[kRsp] = items[3];
  state.rip = items[0];
  state.cpl = 3;
  finish_iret(cpu);
  return {};
}

u64 iret_flags_mask(const CpuState& state, unsigned size) {
  u64 mask = kFlagsUserImage;
  if (size > 2) mask |= kFlagRf | kFlagAc | kFlagId;
  if (state.cpl <= state.iopl()) mask |= kFlagIf;
  if (state.cpl == 0) mask |= size > 2 ? kFlagIopl | kFlagVif | kFlagVip : u64{kFlagIopl};
  return mask;
}

// The stack pointer after a return to another stack. A 16-bit stack takes only SP; the rest of ESP stays.
u64 returned_stack_pointer(const CpuState& state, const CodeTarget& code, const Segment& ss, u64 value) {
  bool to64 = state.long_mode() && code.cs.l;
  unsigned width = to64 ? 8 : ss.db ? 4 : 2;
  return merge_stack_pointer(state.gpr[kRsp], value, width);
}

Guest<void> iret_protected(Cpu& cpu, unsigned size) {
  CpuState& state = cpu.state();
  const bool from64 = state.code64();
  std::array<u64, 5> items{};  // RIP, CS, RFLAGS, RSP, SS
  std::span<u64> near_items(items.data(), from64 ? 5 : 3);
  TRY(peek_stack(cpu, 0, size, near_items));
  u64 flags = items[2];
  if (!state.long_mode() && size == 4 && (flags & kFlagVm) && state.cpl == 0) return iret_to_v86(cpu, flags);

  CodeTarget code = TRY(code_for_return(cpu, static_cast<u16>(items[1]), items[0]));
  if (from64 || code.cpl > state.cpl) {
    if (!from64) TRY(peek_stack(cpu, 3 * size, size, std::span(items).subspan(3)));
    Segment ss = TRY(outer_stack(cpu, static_cast<u16>(items[4]), code));
    state.gpr[kRsp] = returned_stack_pointer(state, code, ss, items[3]);
    state.segments[kSs] = ss;
  } else {
    state.gpr[kRsp] = popped_stack_pointer(state, 3 * size);
  }
  replace_flags(state, flags, iret_flags_mask(state, size));
  if (code.cpl > state.cpl) drop_privileged_segments(state, code.cpl);
  commit_code(state, code);
  finish_iret(cpu);
  return {};
}

Guest<void> iret_from_task(Cpu& cpu) {
  if (cpu.state().long_mode()) return GuestStop::gp(0);
  u16 selector = TRY(previous_task(cpu));
  TRY(switch_task_and_deliver(cpu, selector, TaskSwitch::kIret));
  finish_iret(cpu);
  return {};
}

}  // namespace

Guest<void> op_int(Cpu& cpu, const Insn& insn) {
  TRY(svm::check(cpu, Intercept::kIntn));
  u8 vector = static_cast<u8>(insn.immediate);
  if (cpu.state().v86_mode()) return int_from_v86(cpu, vector);
  return raise_interrupt(cpu, vector, EventKind::kSoftware);
}

// A breakpoint of the client's debugger (KVM_GUESTDBG_USE_SW_BP): RIP stays at the INT3.
GuestStop debugger_breakpoint(Cpu& cpu, const Insn& insn) {
  const CpuState& state = cpu.state();
  Exit exit;
  exit.reason = Exit::Reason::kDebug;
  exit.debug_vector = kVectorBp;
  exit.debug_pc = state.rip - insn.length + (state.code64() ? 0 : state.segments[kCs].base);
  return cpu.stop_for_client(exit);
}

Guest<void> op_int3(Cpu& cpu, const Insn& insn) {
  if (cpu.guest_debug().software_breakpoints) return debugger_breakpoint(cpu, insn);
  return raise_interrupt(cpu, kVectorBp, EventKind::kTrap);
}

Guest<void> op_int1(Cpu& cpu, const Insn&) {
  TRY(svm::check(cpu, Intercept::kIcebp));
  TRY(raise_interrupt(cpu, kVectorDb, EventKind::kTrap));
  cpu.state().dr6 |= cpu.take_held_back_breakpoints();
  return {};
}

Guest<void> op_into(Cpu& cpu, const Insn&) {
  if (!(cpu.state().rflags & kFlagOf)) return {};
  return raise_interrupt(cpu, kVectorOf, EventKind::kTrap);
}

Guest<void> op_iret(Cpu& cpu, const Insn& insn) {
  const CpuState& state = cpu.state();
  unsigned size = insn.operand_size;
  TRY(svm::check(cpu, Intercept::kIret));
  if (state.real_mode()) return iret_real(cpu, size);
  if (state.v86_mode()) return iret_v86(cpu, size);
  if (state.rflags & kFlagNt) return iret_from_task(cpu);
  return iret_protected(cpu, size);
}

}  // namespace anykvm::x86
