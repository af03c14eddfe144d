#include "x86/sys/far_transfer.h"

#include "x86/mmu/access.h"

namespace anykvm::x86 {

namespace {

Guest<CodeTarget> finish(Cpu& cpu, const Descriptor& descriptor, Segment cs, u64 offset, u8 cpl) {
  u32 error = selector_error(cs.selector);
  if (cpu.state().long_mode() && cs.l && cs.db) return GuestStop::gp(error);
  if (!cs.present) return GuestStop::np(error);
  TRY(check_rip(cpu.state(), cs, offset));
  TRY(set_accessed(cpu, descriptor));
  cs.type |= 1;
  cs.selector = static_cast<u16>((cs.selector & ~3) | cpl);
  return CodeTarget{cs, offset, cpl};
}

// SDM 3A 7.2: where a TSS keeps SS:ESP of a privilege level.
struct StackSlot {
  u32 offset;
  unsigned size;
};

StackSlot stack_slot(const CpuState& state, u8 cpl, unsigned ist) {
  if (state.long_mode()) return {ist ? 36 + (ist - 1) * 8 : 4u + cpl * 8, 8};
  return is_tss32(state.tr) ? StackSlot{4u + cpl * 8, 8} : StackSlot{2u + cpl * 4, 4};
}

Guest<StackTarget> inner_stack64(Cpu& cpu, u8 cpl, u64 pointer) {
  StackTarget stack;
  stack.ss = null_segment(cpl, cpl);
  stack.pointer = pointer;
  stack.flat64 = true;
  stack.privilege = cpu.state().cpl == 3 && cpl < 3 ? Privilege::kSystem : Privilege::kCurrent;
  return stack;
}

Guest<StackTarget> inner_stack_legacy(Cpu& cpu, u8 cpl, u64 slot, unsigned slot_size) {
  u16 selector = static_cast<u16>(slot_size == 8 ? bits(slot, 47, 32) : bits(slot, 31, 16));
  GuestStop invalid = GuestStop::ts(selector_error(selector));
  if (is_null_selector(selector)) return invalid;
  Descriptor descriptor = TRY(read_descriptor(cpu, selector, kVectorTs));
  StackTarget stack;
  stack.ss = segment_from_descriptor(selector, descriptor.low);
  if (selector_rpl(selector) != cpl || stack.ss.dpl != cpl || !is_writable_data(stack.ss)) return invalid;
  if (!stack.ss.present) return GuestStop::ss(selector_error(selector));
  TRY(set_accessed(cpu, descriptor));
  stack.ss.type |= 1;
  stack.width = stack.ss.db ? 4 : 2;
  stack.pointer = slot_size == 8 ? bits(slot, 31, 0) : bits(slot, 15, 0);
  stack.error = selector_error(selector);
  stack.privilege = cpu.state().cpl == 3 ? Privilege::kSystem : Privilege::kCurrent;
  return stack;
}

}  // namespace

Guest<void> check_rip(const CpuState& state, const Segment& cs, u64 rip) {
  bool valid = state.long_mode() && cs.l ? state.canonical(rip) : rip <= cs.limit;
  return valid ? Guest<void>{} : GuestStop::gp(0);
}

Guest<CodeTarget> code_for_jump(Cpu& cpu, u16 selector, const Descriptor& descriptor, u64 offset) {
  const u8 cpl = cpu.state().cpl;
  Segment cs = segment_from_descriptor(selector, descriptor.low);
  bool allowed =
      is_conforming(cs) ? cs.dpl <= cpl : is_code(cs) && cs.dpl == cpl && selector_rpl(selector) <= cpl;
  if (!allowed) return GuestStop::gp(selector_error(selector));
  return finish(cpu, descriptor, cs, offset, cpl);
}

Guest<CodeTarget> code_for_return(Cpu& cpu, u16 selector, u64 offset) {
  if (is_null_selector(selector)) return GuestStop::gp(0);
  Descriptor descriptor = TRY(read_descriptor(cpu, selector, kVectorGp));
  Segment cs = segment_from_descriptor(selector, descriptor.low);
  u8 cpl = selector_rpl(selector);
  bool allowed = is_conforming(cs) ? cs.dpl <= cpl : is_code(cs) && cs.dpl == cpl;
  if (!allowed || cpl < cpu.state().cpl) return GuestStop::gp(selector_error(selector));
  return finish(cpu, descriptor, cs, offset, cpl);
}

Guest<CodeTarget> code_for_gate(Cpu& cpu, u16 selector, u64 offset, bool raise) {
  const CpuState& state = cpu.state();
  if (is_null_selector(selector)) return GuestStop::gp(0);
  Descriptor descriptor = TRY(read_descriptor(cpu, selector, kVectorGp));
  Segment cs = segment_from_descriptor(selector, descriptor.low);
  GuestStop refused = GuestStop::gp(selector_error(selector));
  if (!is_code(cs) || cs.dpl > state.cpl) return refused;
  if (!raise && !is_conforming(cs) && cs.dpl != state.cpl) return refused;
  if (state.long_mode() && !cs.l) return refused;
  u8 cpl = is_conforming(cs) || !raise ? state.cpl : cs.dpl;
  // Only ring 0 may interrupt virtual-8086 mode (SDM 2A, INT n).
  if (state.v86_mode() && cpl != 0) return refused;
  return finish(cpu, descriptor, cs, offset, cpl);
}

Guest<StackTarget> inner_stack(Cpu& cpu, u8 cpl, unsigned ist) {
  const CpuState& state = cpu.state();
  StackSlot slot = stack_slot(state, cpl, ist);
  if (slot.offset + slot.size - 1 > state.tr.limit) return GuestStop::ts(selector_error(state.tr.selector));
  u64 value = 0;
  u64 address = state.tr.base + slot.offset;
  if (!state.long_mode()) address &= 0xffffffff;
  TRY(read_linear(cpu, Gva(address), &value, slot.size, Privilege::kSystem));
  return state.long_mode() ? inner_stack64(cpu, cpl, value) : inner_stack_legacy(cpu, cpl, value, slot.size);
}

Guest<Segment> outer_stack(Cpu& cpu, u16 selector, const CodeTarget& code) {
  bool to64 = cpu.state().long_mode() && code.cs.l;
  if (is_null_selector(selector)) {
    if (!to64 || code.cpl == 3 || selector_rpl(selector) != code.cpl) return GuestStop::gp(0);
    return null_segment(selector, code.cpl);
  }
  Descriptor descriptor = TRY(read_descriptor(cpu, selector, kVectorGp));
  Segment ss = segment_from_descriptor(selector, descriptor.low);
  u32 error = selector_error(selector);
  if (selector_rpl(selector) != code.cpl || ss.dpl != code.cpl || !is_writable_data(ss))
    return GuestStop::gp(error);
  if (!ss.present) return GuestStop::ss(error);
  TRY(set_accessed(cpu, descriptor));
  ss.type |= 1;
  return ss;
}

void drop_privileged_segments(CpuState& state, u8 cpl) {
  for (SegmentIndex index : {kEs, kDs, kFs, kGs}) {
    Segment& segment = state.segments[index];
    // A null selector stays as it is: its base may have come from an MSR.
    if (segment.unusable || is_null_selector(segment.selector)) continue;
    if (segment.dpl >= cpl || is_conforming(segment)) continue;
    // The selector goes; the base stays (SDM 2A IRET marks the descriptor invalid and no more).
    const u64 base = segment.base;
    segment = null_segment(0);
    segment.base = base;
  }
}

void commit_code(CpuState& state, const CodeTarget& code) {
  state.segments[kCs] = code.cs;
  state.rip = code.rip;
  state.cpl = code.cpl;
}

}  // namespace anykvm::x86
