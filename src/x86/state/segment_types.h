#pragma once
// Questions about selectors and descriptor types (SDM 3A 3.4.5, table 3-1, table 3-2).
// Owner: nobody; pure functions. Any thread.

#include "x86/state/cpu_state.h"

namespace anykvm::x86 {

constexpr bool is_null_selector(u16 selector) { return (selector & 0xfffc) == 0; }
constexpr u8 selector_rpl(u16 selector) { return selector & 3; }
constexpr bool selector_in_ldt(u16 selector) { return selector & 4; }
// Selector as faults report it: EXT and IDT clear, TI as it is.
constexpr u32 selector_error(u16 selector) { return selector & 0xfffc; }

// Types of system descriptors. In IA-32e mode 2, 9, 11, 12, 14 and 15 exist, and mean the 64-bit forms.
enum SystemType : u8 {
  kTypeTss16 = 1,
  kTypeLdt = 2,
  kTypeTss16Busy = 3,
  kTypeCallGate16 = 4,
  kTypeTaskGate = 5,
  kTypeInterruptGate16 = 6,
  kTypeTrapGate16 = 7,
  kTypeTss32 = 9,
  kTypeTss32Busy = 11,
  kTypeCallGate32 = 12,
  kTypeInterruptGate32 = 14,
  kTypeTrapGate32 = 15,
};

constexpr bool is_code(const Segment& s) { return s.s && (s.type & 8); }
constexpr bool is_conforming(const Segment& s) { return is_code(s) && (s.type & 4); }
constexpr bool is_data(const Segment& s) { return s.s && !(s.type & 8); }
constexpr bool is_writable_data(const Segment& s) { return is_data(s) && (s.type & 2); }
constexpr bool is_expand_down(const Segment& s) { return is_data(s) && (s.type & 4); }
constexpr bool is_readable(const Segment& s) { return is_data(s) || (is_code(s) && (s.type & 2)); }
constexpr bool is_tss(const Segment& s) {
  return !s.s && (s.type == 1 || s.type == 3 || s.type == 9 || s.type == 11);
}
constexpr bool is_tss32(const Segment& s) { return !s.s && (s.type & 8); }

// Are `size` bytes at `offset` within the limit? (SDM 3A 5.3)
constexpr bool within_limit(const Segment& s, u64 offset, u64 size) {
  u64 last = offset + size - 1;
  if (!is_expand_down(s)) return last <= s.limit && last >= offset;
  u64 top = s.db ? 0xffffffff : 0xffff;
  return offset > s.limit && last <= top;
}

}  // namespace anykvm::x86
