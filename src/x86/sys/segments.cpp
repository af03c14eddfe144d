#include "x86/sys/segments.h"

#include <algorithm>

#include "base/guarded_memory.h"
#include "x86/mmu/access.h"

namespace anykvm::x86 {

namespace {

// Byte of a descriptor that holds type, S, DPL and P.
constexpr u64 kAccessByte = 5;
constexpr u8 kAccessedBit = 1;
constexpr u8 kBusyBit = 2;

Guest<void> change_access_byte(Cpu& cpu, Gva descriptor, u8 set, u8 clear) {
  Gva address = descriptor + kAccessByte;
  u8* host = TRY(host_pointer(cpu, address, 1, Access::kWrite, Privilege::kSystem));
  if (host) {
    auto before = guarded_update(host, 1, [&](u64 value) { return (value | set) & ~u64{clear}; });
    if (!before) return GuestStop::unmapped();
    return {};
  }
  u8 value = TRY(load<u8>(cpu, address, Privilege::kSystem));
  return store<u8>(cpu, address, static_cast<u8>((value | set) & ~clear), Privilege::kSystem);
}

// Where the descriptor's `size` bytes are, or nothing if they are outside the table.
std::optional<Gva> descriptor_address(const CpuState& state, u16 selector, unsigned size) {
  u64 base = state.gdtr.base;
  u64 limit = state.gdtr.limit;
  if (selector_in_ldt(selector)) {
    if (state.ldtr.unusable || !state.ldtr.present) return std::nullopt;
    base = state.ldtr.base;
    limit = state.ldtr.limit;
  }
  u64 offset = selector & 0xfff8;
  if (offset + size - 1 > limit) return std::nullopt;
  u64 address = base + offset;
  return Gva(state.long_mode() ? address : address & 0xffffffff);
}

// SDM 3B 20.2.1
Segment v86_segment() {
  Segment segment;
  segment.type = 3;
  segment.s = 1;
  segment.dpl = 3;
  segment.present = 1;
  return segment;
}

constexpr bool is_system_descriptor(u64 low) { return !has_bit(low, 44); }

Guest<void> check_stack_segment(const CpuState& state, const Segment& segment) {
  u32 error = selector_error(segment.selector);
  if (selector_rpl(segment.selector) != state.cpl || segment.dpl != state.cpl || !is_writable_data(segment))
    return GuestStop::gp(error);
  if (!segment.present) return GuestStop::ss(error);
  return {};
}

Guest<void> check_data_segment(const CpuState& state, const Segment& segment) {
  u32 error = selector_error(segment.selector);
  if (!is_readable(segment)) return GuestStop::gp(error);
  u8 privilege = std::max(selector_rpl(segment.selector), state.cpl);
  if (!is_conforming(segment) && privilege > segment.dpl) return GuestStop::gp(error);
  if (!segment.present) return GuestStop::np(error);
  return {};
}

Guest<Segment> null_selector_loaded(const CpuState& state, SegmentIndex index, u16 selector) {
  if (index != kSs) return null_segment(selector);
  // SDM 2B, MOV: a null SS only in 64-bit mode below CPL 3.
  if (!state.code64() || state.cpl == 3 || selector_rpl(selector) != state.cpl) return GuestStop::gp(0);
  return null_segment(selector, state.cpl);
}

Guest<Segment> segment_for_load(Cpu& cpu, SegmentIndex index, u16 selector) {
  CpuState& state = cpu.state();
  if (is_null_selector(selector)) return null_selector_loaded(state, index, selector);
  Descriptor descriptor = TRY(read_descriptor(cpu, selector, kVectorGp));
  Segment segment = segment_from_descriptor(selector, descriptor.low);
  TRY(index == kSs ? check_stack_segment(state, segment) : check_data_segment(state, segment));
  TRY(set_accessed(cpu, descriptor));
  segment.type |= kAccessedBit;
  return segment;
}

}  // namespace

Segment segment_from_descriptor(u16 selector, u64 low, u64 high) {
  Segment segment;
  segment.selector = selector;
  segment.base = bits(low, 39, 16) | bits(low, 63, 56) << 24 | bits(high, 31, 0) << 32;
  segment.g = bits(low, 55, 55);
  u32 limit = static_cast<u32>(bits(low, 15, 0) | bits(low, 51, 48) << 16);
  segment.limit = segment.g ? limit << 12 | 0xfff : limit;
  segment.type = static_cast<u8>(bits(low, 43, 40));
  segment.s = bits(low, 44, 44);
  segment.dpl = static_cast<u8>(bits(low, 46, 45));
  segment.present = bits(low, 47, 47);
  segment.avl = bits(low, 52, 52);
  segment.l = bits(low, 53, 53);
  segment.db = bits(low, 54, 54);
  return segment;
}

Segment null_segment(u16 selector, u8 dpl) {
  Segment segment;
  segment.selector = selector;
  segment.limit = 0;
  segment.dpl = dpl;
  segment.unusable = 1;
  return segment;
}

void set_paragraph_segment(CpuState& state, SegmentIndex index, u16 selector) {
  Segment& segment = state.segments[index];
  // In real mode the limit and the rights stay what protected mode left there ("unreal" mode).
  if (state.v86_mode()) segment = v86_segment();
  segment.selector = selector;
  segment.base = u64{selector} << 4;
  segment.present = 1;
  segment.unusable = 0;
}

Guest<void> load_segment(Cpu& cpu, SegmentIndex index, u16 selector) {
  CpuState& state = cpu.state();
  if (state.paragraph_segments()) {
    set_paragraph_segment(state, index, selector);
  } else {
    state.segments[index] = TRY(segment_for_load(cpu, index, selector));
  }
  cpu.mode_changed();
  return {};
}

Guest<std::optional<Descriptor>> find_descriptor(Cpu& cpu, u16 selector) {
  std::optional<Descriptor> result;
  if (is_null_selector(selector)) return result;
  std::optional<Gva> address = descriptor_address(cpu.state(), selector, 8);
  if (!address) return result;
  u64 low = TRY(load<u64>(cpu, *address, Privilege::kSystem));
  result = Descriptor{low, 0, *address};
  return result;
}

Guest<Descriptor> read_descriptor(Cpu& cpu, u16 selector, u8 fault_vector) {
  GuestStop outside = GuestStop::with_error(fault_vector, selector_error(selector));
  std::optional<Gva> address = descriptor_address(cpu.state(), selector, 8);
  if (!address) return outside;
  Descriptor descriptor{.address = *address};
  descriptor.low = TRY(load<u64>(cpu, *address, Privilege::kSystem));
  if (cpu.state().long_mode() && is_system_descriptor(descriptor.low)) {
    if (!descriptor_address(cpu.state(), selector, 16)) return outside;
    descriptor.high = TRY(load<u64>(cpu, *address + 8, Privilege::kSystem));
  }
  return descriptor;
}

Guest<void> set_accessed(Cpu& cpu, const Descriptor& descriptor) {
  // A table in read-only memory works as long as its flags are set already: no write then.
  if (has_bit(descriptor.low, 40)) return {};
  return change_access_byte(cpu, descriptor.address, kAccessedBit, 0);
}

Guest<void> set_busy(Cpu& cpu, const Descriptor& descriptor, bool busy) {
  return change_access_byte(cpu, descriptor.address, busy ? kBusyBit : 0, busy ? 0 : kBusyBit);
}

void set_cpl(Cpu& cpu, u8 cpl) {
  CpuState& state = cpu.state();
  state.cpl = cpl;
  Segment& cs = state.segments[kCs];
  cs.selector = static_cast<u16>((cs.selector & ~3) | cpl);
  state.segments[kSs].dpl = cpl;
  cpu.mode_changed();
}

}  // namespace anykvm::x86
