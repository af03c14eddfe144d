// Memory accesses of translated code: addresses, the check in front of them, and what happens behind it.
#include "x86/translate/emitter.h"

#include <bit>

#include "base/optimizations.h"

namespace anykvm::x86 {

using namespace asmjit::x86;  // register names
using host::kAddress;
using host::kGuestRsp;
using host::kScratch;

Mem Emitter::address_of(const Insn& insn) {
  const MemoryOperand& m = insn.memory;
  bool has_base = m.base != kNoRegister;
  bool has_index = m.index != kNoRegister;
  Gp base = kAddress, index = kScratch;
  if (has_base && resident(m.base)) base = reg(m.base);
  if (has_base && !resident(m.base)) a.mov(kAddress, host::gpr_slot(m.base));
  if (has_index && resident(m.index)) index = reg(m.index);
  if (has_index && !resident(m.index)) {
    a.mov(kScratch, host::gpr_slot(m.index));
    forget_delta();
  }
  unsigned shift = m.scale == 8 ? 3 : m.scale == 4 ? 2 : m.scale == 2 ? 1 : 0;
  auto displacement = static_cast<i32>(m.displacement);
  if (has_base && has_index) return ptr(base, index, shift, displacement);
  if (has_base) return ptr(base, displacement);
  return ptr_abs(static_cast<u64>(static_cast<i64>(displacement)), index, shift);
}

void Emitter::effective_offset(const Insn& insn, const Gp& to) {
  if (insn.memory.rip_relative && m_block.roams) return rip_relative_offset(insn, to);
  if (insn.memory.base == kNoRegister && insn.memory.index == kNoRegister) {
    a.mov(to.r64(), static_cast<u64>(insn.memory.displacement) & low_bits(8u * insn.address_size));
    return;
  }
  Mem address = address_of(insn);
  if (insn.address_size == 8) {
    a.lea(to.r64(), address);
  } else {
    a.lea(to.r32(), address);
    if (insn.address_size == 2) a.movzx(to.r32(), to.r16());
  }
}

void Emitter::rip_relative_offset(const Insn& insn, const Gp& to) {
  const auto address = static_cast<u64>(insn.memory.displacement);
  if (insn.address_size == 8) return load_rip(to.r64(), address);
  a.mov(to.r32(), host::gs(code_page_offset(), 4));
  a.lea(to.r32(), ptr(to.r64(), static_cast<i32>(static_cast<u32>(address - Block::kNowhere))));
}

void Emitter::add_segment_base(SegmentIndex segment) {
  std::size_t base = offsetof(CpuState, segments) + sizeof(Segment) * segment + offsetof(Segment, base);
  a.mov(kScratch, host::gs(base));
  a.lea(kAddress, ptr(kAddress, kScratch));
}

SlowSite* Emitter::new_slow_site(SegmentIndex segment, unsigned size, bool read, bool write, bool first,
                                 bool last) {
  SlowSite& site = *m_records.make(SlowSite{});
  site.rip = m_rip;
  site.segment = segment;
  site.segmented = !mode.code64();
  site.read = read;
  site.write = write;
  site.first = first;
  site.last = last;
  site.locked = read && write && is_locked(*m_decoded);
  site.x87_store = write && m_decoded->vector == VectorClass::kX87;
  site.size = static_cast<u16>(size);
  site.on_bus = mode.direct_memory() && goes_to_bus();
  site.instruction = guest_address();
  return &site;
}

bool Emitter::goes_to_bus() const { return !m_block.roams && m_slots.goes_to_bus(guest_address()); }

// Whether the access can be looked up directly. R10 = linear address, if so.
bool Emitter::prepare_access(SegmentIndex segment, bool write) {
  forget_delta();
  bool based = segment == kFs || segment == kGs;
  if (mode.code64() && based) add_segment_base(segment);
  protect_flags();
  bool forbidden = segment == kCs && write;  // outside 64-bit mode; the slow path raises the fault
  return mode.direct_memory() && !goes_to_bus() && (mode.code64() || (!based && !forbidden));
}

void Emitter::open_access(SegmentIndex segment, unsigned size, bool read, bool write, bool first, bool last) {
  if (prepare_access(segment, write)) {
    fast_access(size, write, false);
  } else {
    slow_access(new_slow_site(segment, size, read, write, first, last));
  }
}

bool Emitter::open_indexed(SegmentIndex segment, unsigned size, bool read, bool write) {
  const bool direct = prepare_access(segment, write);
  if (direct) {
    fast_access(size, write, false, true);
  } else {
    slow_access(new_slow_site(segment, size, read, write, true, true));
  }
  return direct;
}

void Emitter::open_masked_access(const Decoded& d) {
  forget_delta();
  SegmentIndex segment = d.insn.memory.segment;
  if (mode.direct_memory() && mode.code64() && !goes_to_bus()) {
    if (mode.code64() && (segment == kFs || segment == kGs)) add_segment_base(segment);
    protect_flags();
    fast_access(d.insn.memory.size, d.memory_write, true);
    return;
  }
  if (mode.code64() && (segment == kFs || segment == kGs)) add_segment_base(segment);
  protect_flags();
  SlowSite* site = new_slow_site(segment, d.insn.memory.size, d.memory_read, d.memory_write, true, true);
  site->element = d.mask_element;
  site->lanes = d.mask_lanes;
  site->packed = d.mask_packed;
  site->vector_mask = d.mask_is_vector;
  site->mask = d.mask_register;
  slow_access(site);
}

void Emitter::slow_access(SlowSite* site) {
  a.mov(kScratch, reinterpret_cast<u64>(site));
  a.call(asmjit::Imm(reinterpret_cast<u64>(m_thunks.slow_access)));
  record_call_site();
  m_vector_live = false;
  if (site->write) {
    m_open_slow = site;
    m_open_slow_flags = flags_before();
  }
}

// Kernels look at another object each time.
bool Emitter::wants_slot() const {
  return optimizations().slots && is_user(mode.mmu) && !m_slots.avoids(guest_address());
}

Emitter::Miss Emitter::new_miss(unsigned size, bool write, bool masked) {
  Miss miss;
  miss.entry = a.newLabel();
  miss.resume = a.newLabel();
  miss.info = MissInfo::make(size, write, mode.mmu, masked);
  miss.guest_offset = static_cast<u16>(m_rip - m_block.rip);
  miss.flags = flags_before();
  return miss;
}

// R10 = linear address before, host address after (or R10 + R11). Clobbers flags.
void Emitter::fast_access(unsigned size, bool write, bool masked, bool indexed) {
  Miss miss = new_miss(size, write, masked);
  miss.indexed = indexed;
  if (take_slot(miss)) {
    look_into_slot(miss);
  } else {
    look_into_tlb(miss);
  }
  a.bind(miss.resume);
  m_misses.push_back(miss);
}

// Offset of a slot in the Context.
std::size_t Emitter::slot_offset(const Miss& miss) {
  return offsetof(Context, access) + offsetof(AccessSlots, slots) +
         sizeof(AccessSlot) * MissInfo::slot(miss.info);
}

// Whether there is a slot for the access.
bool Emitter::take_slot(Miss& miss) {
  if (!wants_slot()) return false;
  const bool may_share = !optimizations().sampling || m_slots.is_hot(m_block.gpa.page());
  const u32 slot = m_slots.next(mode.mmu, MissInfo::write(miss.info), MissInfo::size(miss.info), may_share);
  if (slot == kNoSlot) return false;
  miss.info = MissInfo::with_slot(miss.info, slot);
  return true;
}

// See mmu/access_slots.h. `linear` = linear address before, offset in the extent after.
void Emitter::check_slot(const Miss& miss, const Gp& linear) {
  const std::size_t slot = slot_offset(miss);
  a.sub(linear, host::gs(slot + offsetof(AccessSlot, first)));
  const u32 at = offset();
  a.cmp(linear, host::gs(slot + offsetof(AccessSlot, length)));
  a.jae(miss.entry);
  m_pairs.push_back({at, offset()});
}

void Emitter::look_into_slot(Miss& miss) {
  check_slot(miss, kAddress);
  const Mem host = host::gs(slot_offset(miss) + offsetof(AccessSlot, host));
  if (miss.indexed) {
    a.mov(kScratch, host);
  } else {
    a.add(kAddress, host);
  }
}

bool Emitter::open_by_delta(u8 base, i64 displacement, SegmentIndex segment, unsigned size, bool write) {
  const bool plain = mode.code64() && mode.direct_memory() && segment != kFs && segment != kGs;
  if (!plain || base >= 16 || !resident(base) || goes_to_bus()) return false;
  if (m_place.follows()) {
    if (m_delta_of != m_place.group) a.mov(kScratch, host::gs(m_group_delta[m_place.group]));
    m_delta_of = m_place.group;
    return true;
  }
  protect_flags();
  Miss miss = m_place.leads ? new_leader_miss(size, write) : new_miss(size, write, false);
  miss.base = base;
  miss.displacement = static_cast<i32>(displacement) + m_place.low;
  const bool slot = take_slot(miss);
  if (slot) {
    load_linear(kScratch, miss);
    check_slot(miss, kScratch);
    a.mov(kScratch, host::gs(slot_offset(miss) + offsetof(AccessSlot, delta)));
  } else {
    load_linear(kAddress, miss);
    check_tlb(miss, miss.displacement == 0 ? reg(base) : kAddress);
    a.mov(kScratch, host::gs_indexed(tlb_offset() + offsetof(TlbTable, delta), kScratch));
  }
  a.bind(miss.resume);
  m_delta_of = m_place.group;
  if (m_place.leads) keep_group_delta(miss, slot);
  m_misses.push_back(miss);
  return true;
}

Emitter::Miss Emitter::new_leader_miss(unsigned size, bool write) {
  Miss miss = new_miss(m_place.span, m_place.writes, false);
  miss.info = MissInfo::leading(miss.info, static_cast<unsigned>(-m_place.low), size, write);
  if (linkable(m_rip)) miss.info = MissInfo::knowing_split_pages(miss.info);
  return miss;
}

// The slot of the group keeps its contents to the end of the block (SlotNumbers::kPiece).
void Emitter::keep_group_delta(const Miss& miss, bool slot) {
  std::size_t& kept = m_group_delta[m_place.group];
  if (slot) {
    kept = slot_offset(miss) + offsetof(AccessSlot, delta);
    return;
  }
  kept = offsetof(Context, group_delta) + 8u * m_place.group;
  a.mov(host::gs(kept), kScratch);
}

// The linear address of an access by delta.
void Emitter::load_linear(const Gp& to, const Miss& miss) {
  if (miss.displacement == 0) {
    a.mov(to, reg(miss.base));
  } else {
    a.lea(to, ptr(reg(miss.base), miss.displacement));
  }
}

Emitter::StackAccess Emitter::open_stack(i32 displacement, unsigned size, bool read, bool write, bool first,
                                         bool last) {
  if (open_by_delta(kRsp, displacement, kSs, size, write))
    return {ptr(kGuestRsp, kScratch, 0, displacement, size), kAddress};
  stack_offset(displacement);
  open_access(kSs, size, read, write, first, last);
  return {ptr(kAddress, 0, size), kScratch};
}

std::size_t Emitter::tlb_offset() const { return offsetof(Context, tlb) + sizeof(TlbTable) * mode.mmu; }

// See mmu/tlb.h. R10 and `linear` = linear address; afterwards R10 = offset in the page, R11 = index. BEXTR
// takes one cycle from the address to the index where shift and mask take two.
void Emitter::check_tlb(Miss& miss, const Gp& linear) {
  const bool write = MissInfo::write(miss.info);
  miss.tag = tlb_offset() + (write ? offsetof(TlbTable, write_tag) : offsetof(TlbTable, read_tag));
  constexpr u32 kFirstBit = 12, kBits = std::countr_zero(kTlbEntries);
  a.mov(kScratch.r32(), kFirstBit | kBits << 8);
  a.bextr(kScratch.r32(), linear.r32(), kScratch.r32());
  a.sub(kAddress, host::gs_indexed(miss.tag, kScratch));
  const u32 at = offset();
  a.cmp(kAddress, static_cast<i32>(kPageSize - MissInfo::size(miss.info)));
  a.ja(miss.entry);
  m_pairs.push_back({at, offset()});
}

void Emitter::look_into_tlb(Miss& miss) {
  check_tlb(miss, kAddress);
  const Mem host = host::gs_indexed(tlb_offset() + offsetof(TlbTable, host), kScratch);
  if (miss.indexed) {
    a.mov(kScratch, host);
  } else {
    a.add(kAddress, host);
  }
}

void Emitter::begin_crossing() {
  m_crossing = false;
  if (m_misses.empty()) return;
  Miss& miss = m_misses.back();
  const auto guest_offset = static_cast<u16>(m_rip - m_block.rip);
  if (miss.guest_offset != guest_offset || MissInfo::leads(miss.info) || MissInfo::masked(miss.info)) return;
  miss.info |= MissInfo::kMayCross;
  if (!m_slots.crosses(guest_address())) return;
  m_crossing = true;
  miss.info |= MissInfo::kKnowsCrossing;
  miss.rest_begin = offset();
}

void Emitter::end_crossing() {
  if (!m_crossing) return;
  m_crossing = false;
  Miss& miss = m_misses.back();
  miss.rest_end = offset();
  miss.after = a.newLabel();
  a.bind(miss.after);
}

void Emitter::close_access(bool last) {
  if (!m_open_slow) return;
  forget_delta();
  protect_flags(m_use.live_after);
  m_open_slow->last = last;
  a.mov(kScratch, reinterpret_cast<u64>(m_open_slow));
  a.call(asmjit::Imm(reinterpret_cast<u64>(m_thunks.slow_commit)));
  // Where it leaves, registers and image are those before the instruction again.
  record_site(false, m_open_slow_flags, nullptr);
  m_vector_live = false;
  m_open_slow = nullptr;
  m_wrote_slowly = true;
}

void Emitter::end_instruction() {
  add_own_events();
  if (m_wrote_slowly && !m_ended) poll(next_rip());
  m_wrote_slowly = false;
}

void Emitter::stack_offset(i32 displacement) {
  if (mode.stack_bytes == 8) {
    a.lea(kAddress, ptr(kGuestRsp, displacement));
  } else {
    a.lea(kAddress.r32(), ptr(kGuestRsp, displacement));
    if (mode.stack_bytes == 2) a.movzx(kAddress.r32(), kAddress.r16());
  }
}

void Emitter::move_rsp(i32 displacement) {
  if (mode.stack_bytes == 8) {
    a.lea(kGuestRsp, ptr(kGuestRsp, displacement));
    return;
  }
  a.lea(kScratch.r32(), ptr(kGuestRsp, displacement));
  set_rsp(kScratch);
}

void Emitter::set_rsp(const Gp& from) {
  switch (mode.stack_bytes) {
    case 8:
      a.mov(kGuestRsp, from.r64());
      break;
    case 4:
      a.mov(kGuestRsp.r32(), from.r32());
      break;
    default:
      a.mov(kGuestRsp.r16(), from.r16());
      break;
  }
}

}  // namespace anykvm::x86
