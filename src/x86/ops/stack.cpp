// ENTER, PUSHA, POPA, BOUND, XLAT; MOV, PUSH and POP of segment registers (SDM 2A, 2B).

#include <array>
#include <bit>

#include "x86/mmu/access.h"
#include "x86/ops/ops.h"
#include "x86/ops/string_common.h"
#include "x86/sys/segments.h"
#include "x86/sys/stack_frame.h"

namespace anykvm::x86 {

namespace {

// SDM 3A 6.8.3: no interrupt between MOV SS or POP SS and the instruction behind it.
void shadow_after(Cpu& cpu, SegmentIndex index) {
  if (index == kSs) cpu.state().events.shadow = kShadowMovSs;
}

// Bits 5:3 of 06, 0E, 16, 1E, 07, 17, 1F and 0F A0, A1, A8, A9.
SegmentIndex segment_in_opcode(const Insn& insn) { return static_cast<SegmentIndex>(insn.opcode >> 3 & 7); }

unsigned segment_push_size(const Insn& insn) {
  if (insn.code_bits == 64) return insn.operand_size_prefix && !insn.rex_w ? 2 : 8;
  return insn.operand_size;
}

// The frame pointers of the enclosing procedures, which ENTER copies: perhaps from where it has just pushed
// them.
Guest<u64> enclosing_frame_pointer(Cpu& cpu, unsigned level, unsigned size, const StackFrame& pushed) {
  const CpuState& state = cpu.state();
  u64 mask = low_bits(stack_width(state) * 8);
  u64 offset = (state.gpr[kRbp] - u64{level} * size) & mask;
  Gva address = TRY(linear_address(state, kSs, offset, size, Access::kRead));
  std::array<u8, 8> bytes{};
  TRY(read_linear(cpu, address, bytes.data(), size));
  for (unsigned i = 0; i < size; ++i) {
    if (const u8* byte = pushed.byte_below((state.gpr[kRsp] - offset - i) & mask)) bytes[i] = *byte;
  }
  return std::bit_cast<u64>(bytes);
}

// SDM 2A, ENTER: a write at the final stack pointer must be possible.
Guest<void> check_final_stack(Cpu& cpu, u64 pointer, unsigned size) {
  u64 offset = pointer & low_bits(stack_width(cpu.state()) * 8);
  Gva address = TRY(linear_address(cpu.state(), kSs, offset, size, Access::kWrite));
  return probe_write(cpu, address, size);
}

Guest<i64> load_bound(Cpu& cpu, Gva address, unsigned size) {
  u64 value = 0;
  TRY(read_linear(cpu, address, &value, size));
  return static_cast<i64>(sign_extend(value, size * 8));
}

}  // namespace

Guest<void> op_enter(Cpu& cpu, const Insn& insn) {
  CpuState& state = cpu.state();
  const unsigned size = insn.code_bits == 64 && !insn.operand_size_prefix ? 8 : insn.operand_size;
  const u64 locals = insn.immediate & 0xffff;
  const unsigned level = insn.immediate2 & 31;
  const unsigned width = stack_width(state);
  const u64 old = state.gpr[kRsp];
  const u64 frame_pointer = merge_stack_pointer(old, old - size, width);

  StackFrame frame(size);
  frame.push(state.gpr[kRbp]);
  for (unsigned i = 1; i < level; ++i) frame.push(TRY(enclosing_frame_pointer(cpu, i, size, frame)));
  if (level > 0) frame.push(frame_pointer);
  u64 end = old - u64{size} * (1 + level) - locals;
  TRY(check_final_stack(cpu, end, size));
  TRY(frame.write(cpu, StackTarget::current(state)));
  write_gpr(state, insn, kRbp, size, frame_pointer);
  state.gpr[kRsp] = merge_stack_pointer(old, end, width);
  return {};
}

Guest<void> op_pusha(Cpu& cpu, const Insn& insn) {
  CpuState& state = cpu.state();
  StackFrame frame(insn.operand_size);
  for (u8 number = kRax; number <= kRdi; ++number) frame.push(state.gpr[number]);
  state.gpr[kRsp] = TRY(frame.write(cpu, StackTarget::current(state)));
  return {};
}

Guest<void> op_popa(Cpu& cpu, const Insn& insn) {
  CpuState& state = cpu.state();
  std::array<u64, 8> items;  // EDI first
  TRY(peek_stack(cpu, 0, insn.operand_size, items));
  for (u8 number = kRax; number <= kRdi; ++number) {
    if (number != kRsp) write_gpr(state, insn, number, insn.operand_size, items[7 - number]);
  }
  state.gpr[kRsp] = popped_stack_pointer(state, 8u * insn.operand_size);
  return {};
}

Guest<void> op_bound(Cpu& cpu, const Insn& insn) {
  if (!insn.has_memory) return GuestStop::ud();
  const unsigned size = insn.operand_size;
  Gva address = TRY(two_part_operand(cpu, insn, size, size));
  i64 lower = TRY(load_bound(cpu, address, size));
  i64 upper = TRY(load_bound(cpu, address + size, size));
  i64 index = static_cast<i64>(sign_extend(read_gpr(cpu.state(), insn, insn.reg, size), size * 8));
  bool inside = lower <= index && index <= upper;
  return inside ? Guest<void>{} : GuestStop::plain(kVectorBr);
}

Guest<void> op_xlat(Cpu& cpu, const Insn& insn) {
  CpuState& state = cpu.state();
  u64 offset = (state.gpr[kRbx] + (state.gpr[kRax] & 0xff)) & low_bits(insn.address_size * 8);
  Gva address = TRY(linear_address(state, string_source_segment(insn), offset, 1, Access::kRead));
  u8 value = TRY(load<u8>(cpu, address));
  state.gpr[kRax] = (state.gpr[kRax] & ~u64{0xff}) | value;
  return {};
}

Guest<void> op_mov_to_segment(Cpu& cpu, const Insn& insn) {
  auto index = static_cast<SegmentIndex>(insn.reg & 7);
  if (index == kCs || index >= kSegmentCount) return GuestStop::ud();
  u16 selector = static_cast<u16>(TRY(read_rm(cpu, insn, 2)));
  TRY(load_segment(cpu, index, selector));
  shadow_after(cpu, index);
  return {};
}

Guest<void> op_mov_from_segment(Cpu& cpu, const Insn& insn) {
  unsigned index = insn.reg & 7;
  if (index >= kSegmentCount) return GuestStop::ud();
  unsigned size = insn.has_memory ? 2 : insn.rex_w ? 8 : insn.operand_size;
  return write_rm(cpu, insn, size, cpu.state().segments[index].selector);
}

Guest<void> op_push_segment(Cpu& cpu, const Insn& insn) {
  u16 selector = cpu.state().segments[segment_in_opcode(insn)].selector;
  return push_value(cpu, selector, segment_push_size(insn));
}

Guest<void> op_pop_segment(Cpu& cpu, const Insn& insn) {
  CpuState& state = cpu.state();
  SegmentIndex index = segment_in_opcode(insn);
  unsigned size = segment_push_size(insn);
  std::array<u64, 1> item;
  TRY(peek_stack(cpu, 0, size, item));
  // By the width of the stack that it was popped from: POP SS may change it.
  u64 pointer = popped_stack_pointer(state, size);
  TRY(load_segment(cpu, index, static_cast<u16>(item[0])));
  state.gpr[kRsp] = pointer;
  shadow_after(cpu, index);
  return {};
}

}  // namespace anykvm::x86
