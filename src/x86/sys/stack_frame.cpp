#include "x86/sys/stack_frame.h"

#include <cassert>
#include <cstring>

#include "x86/mmu/access.h"
#include "x86/ops/ops.h"
#include "x86/state/segment_types.h"

namespace anykvm::x86 {

namespace {

Guest<Gva> stack_address(const CpuState& state, const StackTarget& stack, u64 offset, unsigned size) {
  GuestStop no_room = GuestStop::ss(stack.error);
  if (stack.flat64) {
    if (!state.canonical(offset) || !state.canonical(offset + size - 1)) return no_room;
    return Gva(offset);
  }
  if (stack.ss.unusable || !within_limit(stack.ss, offset, size)) return no_room;
  return Gva((stack.ss.base + offset) & 0xffffffff);
}

// Far calls within ring 3. What an event or a call to an inner ring pushes is not the user's access.
bool checks_alignment(const CpuState& state, const StackTarget& stack) {
  return stack.privilege == Privilege::kCurrent && alignment_checked(state);
}

}  // namespace

StackTarget StackTarget::current(const CpuState& state) {
  StackTarget stack;
  stack.ss = state.segments[kSs];
  stack.pointer = state.gpr[kRsp];
  stack.width = stack_width(state);
  stack.flat64 = stack.width == 8;
  return stack;
}

void StackFrame::push(u64 value) {
  assert(m_count < kCapacity);
  ++m_count;
  std::memcpy(m_bytes.data() + m_bytes.size() - bytes(), &value, m_item_size);
}

Guest<u64> StackFrame::write(Cpu& cpu, const StackTarget& stack) const {
  u64 mask = low_bits(stack.width * 8);
  u64 top = stack.pointer & mask;
  const bool wraps = top != 0 && top < bytes();
  if (wraps || checks_alignment(cpu.state(), stack)) return write_items(cpu, stack);
  u64 bottom = (top - bytes()) & mask;
  Gva address = TRY(stack_address(cpu.state(), stack, bottom, bytes()));
  Guest<void> written = write_linear(cpu, address, data(), bytes(), stack.privilege);
  // CR2 is to name the item that faults first, in the order of the pushes.
  if (!written.ok() && written.error().kind == GuestStop::Kind::kFault) return write_items(cpu, stack);
  TRY(written);
  return merge_stack_pointer(stack.pointer, bottom, stack.width);
}

// Item by item, all probed before the first is written: the stack pointer may wrap inside the frame (16-bit
// stacks).
Guest<u64> StackFrame::write_items(Cpu& cpu, const StackTarget& stack) const {
  u64 mask = low_bits(stack.width * 8);
  std::array<Gva, kCapacity> addresses;
  u64 pointer = stack.pointer;
  for (unsigned i = 0; i < m_count; ++i) {
    pointer = (pointer - m_item_size) & mask;
    addresses[i] = TRY(stack_address(cpu.state(), stack, pointer, m_item_size));
    bool checked = checks_alignment(cpu.state(), stack);
    if (checked && fails_alignment_check(cpu.state(), addresses[i], m_item_size)) return GuestStop::ac();
    TRY(probe_write(cpu, addresses[i], m_item_size, stack.privilege));
  }
  const u8* end = m_bytes.data() + m_bytes.size();
  for (unsigned i = 0; i < m_count; ++i)
    TRY(write_linear(cpu, addresses[i], end - (i + 1) * m_item_size, m_item_size, stack.privilege));
  return merge_stack_pointer(stack.pointer, pointer, stack.width);
}

Guest<void> peek_stack(Cpu& cpu, u64 skip, unsigned size, std::span<u64> items) {
  const CpuState& state = cpu.state();
  u64 mask = low_bits(stack_width(state) * 8);
  u64 offset = (state.gpr[kRsp] + skip) & mask;
  unsigned total = static_cast<unsigned>(size * items.size());
  std::array<u8, 128> bytes;
  assert(total <= bytes.size());
  // Alignment is that of the items.
  const bool whole = offset + total - 1 <= mask && offset + total - 1 >= offset;
  if (whole && !alignment_checked(state)) {
    Gva address = TRY(linear_address(state, kSs, offset, total, Access::kRead));
    TRY(read_linear(cpu, address, bytes.data(), total));
  } else {
    for (unsigned i = 0; i < items.size(); ++i) {
      Gva address = TRY(linear_address(state, kSs, (offset + i * size) & mask, size, Access::kRead));
      TRY(read_linear(cpu, address, bytes.data() + i * size, size));
    }
  }
  for (unsigned i = 0; i < items.size(); ++i) {
    items[i] = 0;
    std::memcpy(&items[i], bytes.data() + i * size, size);
  }
  return {};
}

u64 popped_stack_pointer(const CpuState& state, u64 bytes) {
  return merge_stack_pointer(state.gpr[kRsp], state.gpr[kRsp] + bytes, stack_width(state));
}

}  // namespace anykvm::x86
