#pragma once
// Several values pushed as a unit: either the whole frame is written or nothing is, on the current stack or
// on one that becomes current only afterwards (gates, SDM 3A 5.8.5, 6.12). Owner: a local variable of the
// instruction or delivery. Only the vCPU's thread.

#include <array>
#include <span>

#include "x86/cpu.h"
#include "x86/fault.h"
#include "x86/mmu/paging.h"

namespace anykvm::x86 {

struct StackTarget {
  Segment ss{};
  u64 pointer = 0;
  unsigned width = 8;   // bytes of the stack pointer in use: 2, 4 or 8
  bool flat64 = false;  // 64-bit mode: canonical form instead of a limit
  Privilege privilege = Privilege::kCurrent;
  u32 error = 0;  // error code of #SS if there is no room

  static StackTarget current(const CpuState& state);
};

class StackFrame {
 public:
  // `item_size`: 2, 4 or 8 bytes.
  explicit StackFrame(unsigned item_size) : m_item_size(item_size) {}

  // At most kCapacity items.
  void push(u64 value);
  // The byte that will be `distance` bytes below the stack pointer of before, if that is in the frame.
  const u8* byte_below(u64 distance) const {
    return distance - 1 < bytes() ? m_bytes.data() + m_bytes.size() - distance : nullptr;
  }
  // Writes all items; the value is the stack pointer afterwards (all 64 bits of RSP).
  Guest<u64> write(Cpu& cpu, const StackTarget& stack) const;

 private:
  static constexpr unsigned kCapacity = 48;  // a call gate copies 31 parameters besides its own four items

  unsigned bytes() const { return m_count * m_item_size; }
  const u8* data() const { return m_bytes.data() + m_bytes.size() - bytes(); }
  Guest<u64> write_items(Cpu& cpu, const StackTarget& stack) const;

  std::array<u8, kCapacity * 8> m_bytes;  // filled from the end, as the stack is
  unsigned m_item_size;
  unsigned m_count = 0;
};

// `value` as the new stack pointer of `width` bytes, `old` being RSP: narrow stacks keep the upper bits.
constexpr u64 merge_stack_pointer(u64 old, u64 value, unsigned width) {
  if (width == 2) return (old & ~u64{0xffff}) | (value & 0xffff);
  return width == 4 ? value & 0xffffffff : value;
}

// Reads items of `size` bytes from the current stack, nearest first, starting `skip` bytes above its top. RSP
// stays.
Guest<void> peek_stack(Cpu& cpu, u64 skip, unsigned size, std::span<u64> items);
// RSP after `bytes` were popped off the current stack.
u64 popped_stack_pointer(const CpuState& state, u64 bytes);

}  // namespace anykvm::x86
