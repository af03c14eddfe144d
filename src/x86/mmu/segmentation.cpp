// linear_address() of access.h: from segment and offset to a linear address.
#include "x86/mmu/access.h"

namespace anykvm::x86 {

namespace {

GuestStop violation(SegmentIndex segment) { return segment == kSs ? GuestStop::ss(0) : GuestStop::gp(0); }

// Bits of a segment's type field, SDM 3A table 3-1.
constexpr u8 kTypeCode = 8, kTypeExpandDown = 4, kTypeWritable = 2, kTypeReadable = 2;

// SDM 3A 5.5. Fetches are not checked: code runs on from a CS of any type after MOV to CR0 set PE.
bool type_allows(const Segment& segment, Access access) {
  if (access == Access::kFetch) return true;
  if (segment.type & kTypeCode) return access == Access::kRead && (segment.type & kTypeReadable);
  return access == Access::kRead || (segment.type & kTypeWritable);
}

// SDM 3A 5.3: offsets above the limit of an expand-down segment are the valid ones, up to what B says.
bool within_limit(const Segment& segment, bool expand_down, u64 offset, unsigned size) {
  u64 last = offset + size - 1;
  if (!expand_down) return last <= segment.limit;
  u64 top = segment.db ? low_bits(32) : low_bits(16);
  return offset > segment.limit && last <= top;
}

Guest<Gva> linear_address_64(const CpuState& state, SegmentIndex segment, u64 offset, unsigned size) {
  u64 base = segment == kFs || segment == kGs ? state.segments[segment].base : 0;
  u64 linear = base + offset;
  // The hole is far wider than any operand, so it cannot lie between two canonical ends.
  if (!state.canonical(linear) || !state.canonical(linear + size - 1)) return violation(segment);
  return Gva(linear);
}

Guest<Gva> linear_address_32(const CpuState& state, SegmentIndex segment, u64 offset, unsigned size,
                             Access access) {
  const Segment& hidden = state.segments[segment];
  bool expand_down = false;
  if (!state.paragraph_segments()) {
    if (hidden.unusable || !hidden.present || !type_allows(hidden, access)) return violation(segment);
    expand_down = !(hidden.type & kTypeCode) && (hidden.type & kTypeExpandDown);
  }
  if (!within_limit(hidden, expand_down, offset, size)) return violation(segment);
  return Gva((hidden.base + offset) & low_bits(32));
}

}  // namespace

bool alignment_checked(const CpuState& state) {
  return (state.rflags & kFlagAc) && (state.cr0 & kCr0Am) && state.cpl == 3;
}

bool fails_alignment_check(const CpuState& state, Gva address, unsigned size) {
  bool natural = size == 2 || size == 4 || size == 8;
  return alignment_checked(state) && natural && (address.value & (size - 1));
}

Guest<Gva> unaligned_address(const CpuState& state, SegmentIndex segment, u64 offset, unsigned size,
                             Access access) {
  if (state.code64()) return linear_address_64(state, segment, offset, size);
  return linear_address_32(state, segment, offset, size, access);
}

Guest<Gva> linear_address(const CpuState& state, SegmentIndex segment, u64 offset, unsigned size,
                          Access access) {
  // Handed on as it is made: a copy would read wider than it was written a moment ago, and wait.
  const bool checked = access != Access::kFetch && alignment_checked(state);
  if (!checked) return unaligned_address(state, segment, offset, size, access);
  const Gva address = TRY(unaligned_address(state, segment, offset, size, access));
  if (fails_alignment_check(state, address, size)) return GuestStop::ac();
  return address;
}

}  // namespace anykvm::x86
