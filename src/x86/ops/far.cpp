// Far JMP, CALL and RET (SDM 2A; 3A 5.8): to code segments, through call gates, task gates and TSS
// descriptors.

#include <array>
#include <span>

#include "x86/mmu/access.h"
#include "x86/ops/ops.h"
#include "x86/sys/far_transfer.h"
#include "x86/sys/task_switch.h"

namespace anykvm::x86 {

namespace {

struct FarPointer {
  u16 selector = 0;
  u64 offset = 0;
};

Guest<FarPointer> far_target(Cpu& cpu, const Insn& insn) {
  u64 mask = low_bits(insn.operand_size * 8);
  if (!insn.has_memory) return FarPointer{static_cast<u16>(insn.immediate2), insn.immediate & mask};
  unsigned size = insn.operand_size + 2u;
  Gva address = TRY(far_pointer_operand(cpu, insn));
  std::array<u8, 10> bytes{};
  TRY(read_linear(cpu, address, bytes.data(), size));
  u64 offset = 0;
  u16 selector = 0;
  for (unsigned i = 0; i < insn.operand_size; ++i) offset |= u64{bytes[i]} << (8 * i);
  for (unsigned i = 0; i < 2; ++i)
    selector = static_cast<u16>(selector | bytes[insn.operand_size + i] << (8 * i));
  return FarPointer{selector, offset};
}

Guest<void> check_paragraph_rip(const CpuState& state, u64 offset) {
  return offset <= state.segments[kCs].limit ? Guest<void>{} : GuestStop::gp(0);
}

void enter_code(Cpu& cpu, const CodeTarget& code) {
  commit_code(cpu.state(), code);
  cpu.mode_changed();
}

// CS and RIP of the caller on `stack`, which stays or becomes the current one.
Guest<void> push_return_address(Cpu& cpu, const StackTarget& stack, unsigned size) {
  CpuState& state = cpu.state();
  StackFrame frame(size);
  frame.push(state.segments[kCs].selector);
  frame.push(state.rip);
  state.gpr[kRsp] = TRY(frame.write(cpu, stack));
  return {};
}

Guest<void> push_return_address(Cpu& cpu, unsigned size) {
  return push_return_address(cpu, StackTarget::current(cpu.state()), size);
}

Guest<void> jump_in_paragraph_mode(Cpu& cpu, const FarPointer& target) {
  CpuState& state = cpu.state();
  TRY(check_paragraph_rip(state, target.offset));
  set_paragraph_segment(state, kCs, target.selector);
  state.rip = target.offset;
  cpu.mode_changed();
  return {};
}

// --- Call gates ---

struct CallGate {
  u16 selector = 0;
  u64 offset = 0;
  unsigned parameters = 0;
  unsigned item_size = 4;
};

// Checks that CPL and RPL may use the system descriptor, that it is present, and in IA-32e mode its upper
// half.
Guest<void> check_system_descriptor(const CpuState& state, u16 selector, const Descriptor& descriptor) {
  Segment gate = segment_from_descriptor(selector, descriptor.low);
  u32 error = selector_error(selector);
  if (gate.dpl < state.cpl || gate.dpl < selector_rpl(selector)) return GuestStop::gp(error);
  if (state.long_mode() && bits(descriptor.high, 44, 40) != 0) return GuestStop::gp(error);
  if (!gate.present) return GuestStop::np(error);
  return {};
}

CallGate parse_call_gate(const CpuState& state, const Descriptor& descriptor, u8 type) {
  CallGate gate;
  gate.selector = gate_selector(descriptor);
  gate.parameters = static_cast<unsigned>(bits(descriptor.low, 36, 32));
  gate.offset = gate_offset(descriptor);
  if (type == kTypeCallGate16) {
    gate.offset &= 0xffff;
    gate.item_size = 2;
  }
  if (state.long_mode()) {
    gate.parameters = 0;
    gate.item_size = 8;
  }
  return gate;
}

Guest<void> call_inner(Cpu& cpu, const CallGate& gate, const CodeTarget& code) {
  CpuState& state = cpu.state();
  StackTarget stack = TRY(inner_stack(cpu, code.cpl));
  std::array<u64, 31> storage;
  std::span<u64> parameters(storage.data(), gate.parameters);
  if (!parameters.empty()) TRY(peek_stack(cpu, 0, gate.item_size, parameters));

  StackFrame frame(gate.item_size);
  frame.push(state.segments[kSs].selector);
  frame.push(state.gpr[kRsp]);
  for (unsigned i = gate.parameters; i > 0; --i) frame.push(parameters[i - 1]);
  frame.push(state.segments[kCs].selector);
  frame.push(state.rip);
  state.gpr[kRsp] = TRY(frame.write(cpu, stack));
  state.segments[kSs] = stack.ss;
  enter_code(cpu, code);
  return {};
}

// The current stack as the gate's target uses it: 64-bit code addresses it without segmentation.
StackTarget gate_stack(const CpuState& state) {
  StackTarget stack = StackTarget::current(state);
  if (state.long_mode()) {
    stack.width = 8;
    stack.flat64 = true;
  }
  return stack;
}

Guest<void> use_call_gate(Cpu& cpu, const CallGate& gate, bool call) {
  CodeTarget code = TRY(code_for_gate(cpu, gate.selector, gate.offset, call));
  if (call && code.cpl < cpu.state().cpl) return call_inner(cpu, gate, code);
  if (call) TRY(push_return_address(cpu, gate_stack(cpu.state()), gate.item_size));
  enter_code(cpu, code);
  return {};
}

// --- System descriptors as targets ---

Guest<void> use_task_gate(Cpu& cpu, const Descriptor& gate, TaskSwitch kind) {
  return switch_task_and_deliver(cpu, gate_selector(gate), kind);
}

Guest<void> use_system_descriptor(Cpu& cpu, u16 selector, const Descriptor& descriptor, bool call) {
  CpuState& state = cpu.state();
  u8 type = static_cast<u8>(bits(descriptor.low, 43, 40));
  TaskSwitch kind = call ? TaskSwitch::kCall : TaskSwitch::kJump;
  bool exists = type == kTypeCallGate32;
  if (!state.long_mode())
    exists |= type == kTypeCallGate16 || type == kTypeTaskGate || type == kTypeTss16 || type == kTypeTss32;
  if (!exists) return GuestStop::gp(selector_error(selector));
  TRY(check_system_descriptor(state, selector, descriptor));
  switch (type) {
    case kTypeCallGate16:
    case kTypeCallGate32:
      return use_call_gate(cpu, parse_call_gate(state, descriptor, type), call);
    case kTypeTaskGate:
      return use_task_gate(cpu, descriptor, kind);
    default:
      return switch_task_and_deliver(cpu, selector, kind);
  }
}

Guest<void> return_in_paragraph_mode(Cpu& cpu, std::span<const u64> items, unsigned size, u64 released) {
  CpuState& state = cpu.state();
  TRY(check_paragraph_rip(state, items[0]));
  state.gpr[kRsp] = popped_stack_pointer(state, 2 * size + released);
  set_paragraph_segment(state, kCs, static_cast<u16>(items[1]));
  state.rip = items[0];
  cpu.mode_changed();
  return {};
}

Guest<void> return_outer(Cpu& cpu, const CodeTarget& code, unsigned size, u64 released) {
  CpuState& state = cpu.state();
  std::array<u64, 2> items;  // RSP, SS
  TRY(peek_stack(cpu, 2 * size + released, size, items));
  Segment ss = TRY(outer_stack(cpu, static_cast<u16>(items[1]), code));
  unsigned width = state.long_mode() && code.cs.l ? 8 : ss.db ? 4 : 2;
  // Parameters are released from the outer stack as well.
  state.gpr[kRsp] = merge_stack_pointer(state.gpr[kRsp], items[0] + released, width);
  state.segments[kSs] = ss;
  drop_privileged_segments(state, code.cpl);
  enter_code(cpu, code);
  return {};
}

}  // namespace

Guest<void> op_far_jmp(Cpu& cpu, const Insn& insn) {
  FarPointer target = TRY(far_target(cpu, insn));
  if (cpu.state().paragraph_segments()) return jump_in_paragraph_mode(cpu, target);
  if (is_null_selector(target.selector)) return GuestStop::gp(0);
  Descriptor descriptor = TRY(read_descriptor(cpu, target.selector, kVectorGp));
  if (!has_bit(descriptor.low, 44)) return use_system_descriptor(cpu, target.selector, descriptor, false);
  enter_code(cpu, TRY(code_for_jump(cpu, target.selector, descriptor, target.offset)));
  return {};
}

Guest<void> op_far_call(Cpu& cpu, const Insn& insn) {
  FarPointer target = TRY(far_target(cpu, insn));
  if (cpu.state().paragraph_segments()) {
    TRY(check_paragraph_rip(cpu.state(), target.offset));
    TRY(push_return_address(cpu, insn.operand_size));
    return jump_in_paragraph_mode(cpu, target);
  }
  if (is_null_selector(target.selector)) return GuestStop::gp(0);
  Descriptor descriptor = TRY(read_descriptor(cpu, target.selector, kVectorGp));
  if (!has_bit(descriptor.low, 44)) return use_system_descriptor(cpu, target.selector, descriptor, true);
  CodeTarget code = TRY(code_for_jump(cpu, target.selector, descriptor, target.offset));
  TRY(push_return_address(cpu, insn.operand_size));
  enter_code(cpu, code);
  return {};
}

Guest<void> op_far_ret(Cpu& cpu, const Insn& insn) {
  CpuState& state = cpu.state();
  const unsigned size = insn.operand_size;
  const u64 released = insn.immediate & 0xffff;
  std::array<u64, 2> items;  // RIP, CS
  TRY(peek_stack(cpu, 0, size, items));
  if (state.paragraph_segments()) return return_in_paragraph_mode(cpu, items, size, released);
  CodeTarget code = TRY(code_for_return(cpu, static_cast<u16>(items[1]), items[0]));
  if (code.cpl > state.cpl) return return_outer(cpu, code, size, released);
  state.gpr[kRsp] = popped_stack_pointer(state, 2 * size + released);
  enter_code(cpu, code);
  return {};
}

}  // namespace anykvm::x86
