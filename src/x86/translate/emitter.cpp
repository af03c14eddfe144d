#include "x86/translate/emitter.h"

#include <Zydis/Zydis.h>

#include <bit>
#include <limits>

#include "base/optimizations.h"
#include "x86/ops/string_common.h"

namespace anykvm::x86 {

using namespace asmjit::x86;  // register names
using host::kAddress;
using host::kGuestRsp;
using host::kScratch;

Emitter::Emitter(Assembler& assembler, const Thunks& thunks, SlotNumbers& slots, RecordMemory& records,
                 const Block& facts, const FlagPlan& flags, const IgnoresFlags& ignores_flags)
    : a(assembler),
      mode(facts.mode),
      m_thunks(thunks),
      m_slots(slots),
      m_records(records),
      m_block(facts),
      m_flag_plan(flags),
      m_ignores_flags(ignores_flags) {
  if (flags.entry() == EntryFlags::kImage) m_flags = FlagsAt::kImage;
  for (u8 gpr = 0; gpr < 16; ++gpr) m_host_of[gpr] = host::register_of(gpr);
}

void Emitter::begin_loop(bool uses_vector) {
  m_loops = true;
  LoopRegisters& loop = m_block.loop_registers;
  for (unsigned i = 0; i < loop.count; ++i) {
    const Gp lent = reg(loop.lender[i]);
    a.mov(host::gs(offsetof(Context, lent) + 8 * i), lent);
    a.mov(lent, host::gpr_slot(loop.guest[i]));
    m_host_of[loop.guest[i]] = m_host_of[loop.lender[i]];
  }
  // Outside 64-bit mode accesses may take the slow path within the loop, which leaves no vector state in
  // place.
  if (uses_vector && mode.code64()) {
    const FlagsAt before = m_flags;
    m_use.live_before = m_block.ignores_flags ? 0 : static_cast<u32>(kFlagsArithmetic);
    ensure_vector();
    m_flags = before;
  }
  if (m_flag_plan.round_recipe() != kNoRecipe) begin_first_round();
  m_block.loop_entry = static_cast<u16>(offset());
}

void Emitter::begin_first_round() {
  m_block.round_register = m_flag_plan.round_register();
  if (m_block.round_register == kNoRegister) return void(a.mov(ANYKVM_GS(later_round), 0));
  load_gpr(kScratch, m_block.round_register);
  a.mov(ANYKVM_GS(first_round), kScratch);
}

// Moves only.
void Emitter::leave_loop() {
  const LoopRegisters& loop = m_block.loop_registers;
  for (unsigned i = 0; i < loop.count; ++i) {
    const Gp lent = reg(loop.lender[i]);
    a.mov(host::gpr_slot(loop.guest[i]), lent);
    a.mov(lent, host::gs(offsetof(Context, lent) + 8 * i));
  }
}

// --- Performance counters ---

namespace {

// Can control leave the block before the instruction is complete? Then what was before it has been counted.
bool may_leave(const Decoded& d, const Policy& policy) {
  switch (policy.kind) {
    case Policy::Kind::kAsIs:
      return d.insn.has_memory || d.vector != VectorClass::kNone || d.insn.mnemonic == ZYDIS_MNEMONIC_DIV ||
             d.insn.mnemonic == ZYDIS_MNEMONIC_IDIV;
    case Policy::Kind::kRule:
      return policy.rule != Rule::klea && policy.rule != Rule::knop && policy.rule != Rule::kjcc;
    default:
      return true;
  }
}

bool is_branch(const Decoded& d) {
  switch (d.category) {
    case ZYDIS_CATEGORY_CALL:
    case ZYDIS_CATEGORY_RET:
    case ZYDIS_CATEGORY_COND_BR:
    case ZYDIS_CATEGORY_UNCOND_BR:
    case ZYDIS_CATEGORY_INTERRUPT:
    case ZYDIS_CATEGORY_SYSCALL:
    case ZYDIS_CATEGORY_SYSRET:
      return true;
    default:
      return false;
  }
}

}  // namespace

void Emitter::count(Counted what, i64 events) {
  const Mem left = host::gs(offsetof(Context, events_left) + 8 * static_cast<unsigned>(what));
  forget_delta();
  a.mov(kScratch, left);
  a.lea(kScratch, ptr(kScratch, static_cast<i32>(-events)));
  a.mov(left, kScratch);
}

void Emitter::count_instructions() {
  if (m_uncounted) count(Counted::kInstructions, m_uncounted);
  m_uncounted = 0;
}

void Emitter::retire_branch() {
  if (mode.counts_instructions) ++m_uncounted;
  m_counted = true;
  count_instructions();
  if (mode.counts_branches) count(Counted::kBranches, 1);
}

// For the comparisons that look at the whole stamp.
void Emitter::show_overflows() {
  if (!mode.counters_overflow) return;
  constexpr unsigned kHighestByte = 56;
  for (Counted what : {Counted::kInstructions, Counted::kBranches}) {
    const auto index = static_cast<unsigned>(what);
    forget_delta();
    a.mov(kScratch, host::gs(offsetof(Context, events_left) + 8 * index));
    a.rorx(kScratch, kScratch, kHighestByte);
    a.mov(host::gs(offsetof(Context, stamp) + offsetof(LinkStamp, part.overflowed) + index, 1),
          kScratch.r8());
  }
}

// What polls look at: not zero if there is something to attend to.
Mem Emitter::attention() const { return host::gs(offsetof(Context, stamp), mode.counters_overflow ? 4 : 1); }

u8 Emitter::counts_of_helper(const Decoded& d) const {
  return static_cast<u8>(mode.counts_instructions | (mode.counts_branches && is_branch(d)) << 1);
}

void Emitter::begin(unsigned number, const Decoded& decoded, const Policy& policy, u64 rip,
                    const FlagUse& flags, const GroupPlace& place) {
  m_decoded = &decoded;
  m_place = place;
  m_rip = rip;
  m_counted = !mode.counts_instructions;
  if (may_leave(decoded, policy)) count_instructions();
  m_use = flags;
  m_flag_plan.each_kept(number, [this](const FlagPlan::Keep& keep) {
    if (!resident(keep.gpr)) forget_delta();
    if (!resident(keep.gpr)) load_gpr(kScratch, keep.gpr);
    a.mov(host::gs(offsetof(Context, kept) + 8u * keep.slot), resident(keep.gpr) ? reg(keep.gpr) : kScratch);
  });
}

u64 Emitter::next_rip() const {
  u64 next = m_rip + m_decoded->insn.length;
  return mode.code64() ? next : next & 0xffffffff;
}

// In the Context, of the entry for a block that roams.
std::size_t Emitter::code_page_offset() const {
  return offsetof(Context, code_pages) + 8u * m_block.code_page;
}

void Emitter::load_rip(const Gp& to, u64 address) {
  if (!m_block.roams) {
    a.mov(to, address);
    return;
  }
  // What an instruction can name relative to RIP may be a little further from its page's beginning.
  constexpr i64 kMost = std::numeric_limits<i32>::max();
  const auto distance = static_cast<i64>(address - Block::kNowhere);
  a.mov(to, host::gs(code_page_offset()));
  if (distance > kMost) a.lea(to, ptr(to, static_cast<i32>(kMost)));
  a.lea(to, ptr(to, static_cast<i32>(distance > kMost ? distance - kMost : distance)));
}

u64 Emitter::wrap_rip(u64 value, unsigned operand_size) const {
  if (mode.code64()) return value;
  return operand_size == 2 ? value & 0xffff : value & 0xffffffff;
}

// --- Guest general registers ---

Gp Emitter::reg(u8 gpr, unsigned size) const {
  u8 number = host_of(gpr);
  switch (size) {
    case 1:
      return gpb_lo(number);
    case 2:
      return gpw(number);
    case 4:
      return gpd(number);
    default:
      return gpq(number);
  }
}

void Emitter::load_gpr(const Gp& to, u8 gpr) {
  if (resident(gpr)) {
    a.mov(to.r64(), reg(gpr));
  } else {
    a.mov(to.r64(), host::gpr_slot(gpr));
  }
}

void Emitter::store_gpr(u8 gpr, const Gp& from, unsigned size) {
  if (resident(gpr)) {
    switch (size) {
      case 1:
        a.mov(reg(gpr, 1), from.r8());
        break;
      case 2:
        a.mov(reg(gpr, 2), from.r16());
        break;
      case 4:
        a.mov(reg(gpr, 4), from.r32());
        break;
      default:
        a.mov(reg(gpr), from.r64());
        break;
    }
    return;
  }
  switch (size) {
    case 1:
      a.mov(host::gpr_slot(gpr, 1), from.r8());
      break;
    case 2:
      a.mov(host::gpr_slot(gpr, 2), from.r16());
      break;
    case 4:
      a.mov(from.r32(), from.r32());
      [[fallthrough]];
    default:
      a.mov(host::gpr_slot(gpr), from.r64());
      break;
  }
}

// --- Flags ---

void Emitter::protect_flags(u32 live) {
  if (m_flags != FlagsAt::kHost || !live) {
    if (!live && m_flags == FlagsAt::kHost) {
      m_flags = FlagsAt::kRecovered;
      m_flags_lost = kFlagsArithmetic;
    }
    return;
  }
  host::save_flags_by_scratch(a);
  forget_delta();
  m_flags = FlagsAt::kImage;
}

void Emitter::flags_to_host(const Gp& spare) {
  if (m_flags != FlagsAt::kImage) return;
  host::restore_flags_by(a, spare);
  if (spare == kScratch) forget_delta();
  m_flags = FlagsAt::kHost;
}

void Emitter::flags_written(u32 killed) {
  m_flags_lost &= ~killed;
  m_flags = FlagsAt::kHost;
}

Emitter::FlagsNow Emitter::flags_now(u8 recipe) const {
  if (recipe == kRecipeRound) return {FlagsAt::kRound, m_flag_plan.round_recipe()};
  if (m_flags != FlagsAt::kRecovered && !m_flags_lost) return {m_flags};
  if (recipe == kRecipeImage) return {FlagsAt::kImage};
  return {FlagsAt::kRecovered, recipe};
}

// --- Memory ---

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
  site.size = static_cast<u16>(size);
  return &site;
}

// Whether the access can be looked up directly. R10 = linear address, if so.
bool Emitter::prepare_access(SegmentIndex segment, bool write) {
  forget_delta();
  bool based = segment == kFs || segment == kGs;
  if (mode.code64() && based) add_segment_base(segment);
  protect_flags();
  bool forbidden = segment == kCs && write;  // outside 64-bit mode; the slow path raises the fault
  return mode.direct_memory() && (mode.code64() || (!based && !forbidden));
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
  if (mode.direct_memory() && mode.code64()) {
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
  return optimizations().slots && mode.mmu == kMmuUser &&
         !m_slots.avoids(m_block.gpa + (m_rip - m_block.rip));
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
  const u32 slot = m_slots.next(mode.mmu, MissInfo::write(miss.info), MissInfo::size(miss.info));
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
  if (!plain || base >= 16 || !resident(base)) return false;
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
  if (!m_slots.crosses(m_block.gpa + guest_offset)) return;
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
  if (!m_counted) ++m_uncounted;
  m_counted = true;
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

// --- Vector state ---

// Clobbers R11.
void Emitter::ensure_vector() {
  if (m_vector_live) return;
  m_vector_live = true;
  const bool flags_in_use = m_flags == FlagsAt::kHost && m_use.live_before;
  if (flags_in_use) return ensure_vector_without_flags();
  protect_flags();
  m_vector_loads.push_back({a.newLabel(), a.newLabel()});
  a.cmp(ANYKVM_GS(vector_dead), 0);
  a.jne(m_vector_loads.back().entry);
  a.bind(m_vector_loads.back().resume);
}

void Emitter::ensure_vector_without_flags() {
  forget_delta();
  asmjit::Label live = a.newLabel();
  a.mov(kScratch, rcx);
  a.mov(rcx, ANYKVM_GS(vector_dead));
  a.jecxz(rcx, live);
  a.mov(rcx, kScratch);
  a.call(asmjit::Imm(reinterpret_cast<u64>(m_thunks.load_vector)));
  a.mov(kScratch, rcx);
  a.bind(live);
  a.mov(rcx, kScratch);
}

// --- Helpers and ends ---

namespace {

// INT clears TF on its way, so the single-step trap that was due is not taken (SDM 3B 18.3.1.4); SYSCALL and
// SYSRET see to theirs.
bool swallows_step_trap(Op op) {
  return op == op_int || op == op_int3 || op == op_int1 || op == op_into || op == op_syscall ||
         op == op_sysret;
}

}  // namespace

const HelperSite* Emitter::new_helper_site(const Insn& insn, Op op, u16 flags) {
  const bool ends_block = flags & kOpEnd, alone = mode.step || mode.slow;
  const bool continues = ends_block && !alone && optimizations().chaining;
  if (mode.step && swallows_step_trap(op)) m_block.swallows_step_trap = true, m_block.into = op == op_into;
  return m_records.make(HelperSite{insn, op, m_rip, next_rip(), ends_block || alone, continues,
                                   (flags & kOpSerializes) != 0, m_block.roams != 0, m_block.code_page,
                                   counts_of_helper(*m_decoded)});
}

// For REP MOVS and REP STOS; null for others.
const u8* Emitter::string_thunk(const HelperSite& site) const {
  const Insn& insn = site.insn;
  const bool strings = site.op == op_movs || site.op == op_stos;
  if (!strings || !(insn.rep || insn.repne) || !optimizations().strings) return nullptr;
  const SegmentIndex segment = string_source_segment(insn);
  const bool plain = mode.code64() && mode.direct_memory() && !mode.step && insn.address_size == 8 &&
                     segment != kFs && segment != kGs;
  if (!plain || mode.counts()) return nullptr;
  const int shift = std::countr_zero(insn.operand_size);
  return site.op == op_movs ? m_thunks.move_string[shift] : m_thunks.store_string[shift];
}

void Emitter::call_helper_thunk(const HelperSite* site, u16 flags) {
  const u8* thunk = flags & kOpKeepsVector ? m_thunks.helper_keeping_vector : m_thunks.helper;
  if (const u8* string = string_thunk(*site)) {
    thunk = string;
    a.mov(kScratch.r32(), static_cast<u32>(tlb_offset()));
  }
  a.mov(kAddress, reinterpret_cast<u64>(site));
  a.call(asmjit::Imm(reinterpret_cast<u64>(thunk)));
}

void Emitter::call_helper(const Insn& insn, Op op, u16 flags) {
  protect_flags(kFlagsArithmetic);
  forget_delta();
  call_helper_thunk(new_helper_site(insn, op, flags), flags);
  m_counted = true;
  record_site(false, {FlagsAt::kImage}, nullptr);
  m_flags = FlagsAt::kImage;
  m_flags_lost = 0;
  if (!(flags & kOpKeepsVector)) m_vector_live = false;
  if (flags & kOpEnd) m_ended = true;
}

void Emitter::call_gather(const Insn& insn, Op op, u16 flags, const GatherForm& form) {
  forget_delta();
  a.mov(kAddress, reinterpret_cast<u64>(new_helper_site(insn, op, flags)));
  a.mov(kScratch.r32(), GatherInfo::make(form, mode.mmu));
  a.call(asmjit::Imm(reinterpret_cast<u64>(m_thunks.gather)));
  record_site(false, {FlagsAt::kImage}, nullptr);
  m_vector_live = false;
}

asmjit::Label Emitter::helper_aside(const Insn& insn, Op op, u16 flags, asmjit::Label resume) {
  const HelperSite* site = new_helper_site(insn, op, flags);
  m_asides.push_back({a.newLabel(), resume, site, flags, static_cast<u16>(m_rip - m_block.rip)});
  if (resume.isValid() && !(flags & kOpKeepsVector)) m_vector_live = false;
  return m_asides.back().entry;
}

// Links join blocks of one page only, so that a change of the guest's mappings never leaves a link behind.
bool Emitter::linkable(u64 target) const {
  if (mode.step || mode.slow || m_block.straddles || !optimizations().links) return false;
  return ((target + mode.cs_base) ^ (m_block.rip + mode.cs_base)) < kPageSize;
}

Emitter::Exit& Emitter::new_exit(u64 target, bool in_loop) {
  return add_exit(
      {.label = a.newLabel(), .target = target, .flags = flags_after(), .in_loop = in_loop, .links = true});
}

// What settle() needs is made now: the records of finish() must stay together.
Emitter::Exit& Emitter::add_exit(const Exit& exit) {
  recovery(exit.flags.recipe);
  return m_exits.emplace_back(exit);
}

// Before the instruction of `miss`, to a block that makes each access by itself.
asmjit::Label Emitter::new_narrow_exit(const Miss& miss) {
  Exit& exit = new_exit(m_block.rip + miss.guest_offset);
  exit.flags = miss.flags;
  exit.narrow = true;
  exit.jump = a.newLabel();
  return exit.jump;
}

// To attend to something: nothing is to be linked there.
Emitter::Exit& Emitter::new_stop(u64 target, bool in_loop) {
  return add_exit(
      {.label = a.newLabel(), .target = target, .flags = flags_after(), .in_loop = in_loop, .links = false});
}

// A rel32 is patched while other vCPUs may run it, so it must not straddle an aligned eight bytes.
void Emitter::align_displacement(unsigned opcode_bytes) {
  while (((a.offset() + opcode_bytes) & 7) > 4) a.nop();
}

const u8* Emitter::leave_thunk(FlagsAt flags) const {
  return flags == FlagsAt::kHost ? m_thunks.leave_flags_in_host : m_thunks.leave_flags_in_image;
}

void Emitter::leave_to(u64 target) {
  load_rip(kAddress, target);
  a.mov(ANYKVM_GS(state.rip), kAddress);
  a.mov(kScratch.r32(), kNoRecord);
  a.jmp(asmjit::Imm(reinterpret_cast<u64>(leave_thunk(m_flags))));
}

// Every loop has a backward jump, so that is where the attention byte is looked at: jumps to the place for it
// if something is to be attended to.
void Emitter::poll(u64 target) {
  count_instructions();
  const Exit& stop = new_stop(target, m_loops && target == m_block.rip);
  if (m_flags != FlagsAt::kHost) {
    a.cmp(attention(), 0);
    a.jne(stop.label);
    return;
  }
  asmjit::Label go = a.newLabel();
  a.mov(kScratch, rcx);
  if (attention().size() == 1) {
    a.movzx(ecx, attention());
  } else {
    a.mov(ecx, attention());
  }
  a.jecxz(rcx, go);
  a.mov(rcx, kScratch);
  a.jmp(stop.label);
  a.bind(go);
  a.mov(rcx, kScratch);
}

// Brings flags to where the beginning of the loop expects them.
void Emitter::begin_next_round() {
  if (m_flag_plan.entry() == EntryFlags::kHost) flags_to_host();
  if (m_flag_plan.entry() != EntryFlags::kImage) return;
  if (m_flag_plan.round_recipe() == kNoRecipe) return protect_flags(kFlagsArithmetic);
  if (m_block.round_register == kNoRegister) a.mov(ANYKVM_GS(later_round), 1);
  protect_flags(0);
}

void Emitter::jump_back(u64 target) {
  show_overflows();
  const bool in_loop = m_loops && target == m_block.rip;
  if (in_loop) begin_next_round();
  if (m_use.after != kNoRecipe && m_ignores_flags(target)) protect_flags(0);
  const bool free_flags = m_flags != FlagsAt::kHost;
  if (!free_flags) poll(target);
  Exit& exit = new_exit(target, in_loop);
  if (!free_flags) return jump_by_link(exit);
  const Exit& stop = new_stop(target, in_loop);
  a.cmp(attention(), 0);
  align_displacement(2);
  a.long_().je(exit.label);
  exit.displacement = offset() - 4;
  a.jmp(stop.label);
}

void Emitter::jump_by_link(Exit& exit) {
  align_displacement(1);
  a.long_().jmp(exit.label);
  exit.displacement = offset() - 4;
}

void Emitter::jump_to(u64 target, bool next_straddles) {
  m_ended = true;
  count_instructions();
  FlagsAt before = m_flags;  // what follows is another path
  if (m_loops && target != m_block.rip) leave_loop();
  if (linkable(target) && !next_straddles) {
    if (target <= m_rip) {
      jump_back(target);
    } else {
      jump_by_link(new_exit(target));
    }
  } else if (!jumps_on()) {
    leave_to(target);
  } else {
    protect_flags(kFlagsArithmetic);
    jump_by_cache(target);
  }
  m_flags = before;
}

// Flags are in the image.
void Emitter::jump_by_cache(u64 target) {
  show_overflows();
  load_rip(kAddress, target);
  if (m_block.roams) return jump_by_index(m_cache_miss);
  const std::size_t entry = offsetof(Context, jumps) + sizeof(JumpEntry) * jump_cache_index(target);
  jump_through_cache(host::gs(entry + offsetof(JumpEntry, tag)),
                     host::gs(entry + offsetof(JumpEntry, target)), m_cache_miss);
}

// See Block::gate_host.
void Emitter::emit_gate() {
  m_block.gate_host = static_cast<u16>(offset());
  host::save_flags(a);
  m_block.gate_image = static_cast<u16>(offset());
  jump_by_cache(m_block.rip);
}

void Emitter::embed_instruction(const u8* bytes, unsigned length) {
  m_instruction_at = offset();
  a.embed(bytes, length);
}

void Emitter::jump_if(CondCode condition, u64 target) {
  flags_to_host();
  constexpr u32 kLongBranch = 6;
  m_pairs.push_back({m_instruction_at, offset() + kLongBranch});
  if (linkable(target) && target > m_rip) {
    Exit& exit = new_exit(target);
    if (m_block.loop_registers.count) {
      exit.jump = a.newLabel();
      a.j(condition, exit.jump);
      return;
    }
    align_displacement(2);
    a.long_().j(condition, exit.label);
    exit.displacement = offset() - 4;
    return;
  }
  if (!linkable(target)) {
    m_far_exits.push_back({a.newLabel(), target, m_flags});
    a.j(condition, m_far_exits.back().label);
    return;
  }
  asmjit::Label not_taken = a.newLabel();
  a.j(static_cast<CondCode>(static_cast<unsigned>(condition) ^ 1), not_taken);
  jump_to(target);
  m_ended = false;
  a.bind(not_taken);
}

void Emitter::jump_to_address(i32 moved_stack) {
  m_ended = true;
  m_block.branch_offset = static_cast<u16>(m_rip - m_block.rip);
  m_block.branch_moved_stack = moved_stack;
  show_overflows();
  protect_flags(kFlagsArithmetic);
  if (!jumps_on()) {
    m_indirect_miss = a.newLabel();
    a.mov(ANYKVM_GS(state.rip), kAddress);
    a.jmp(m_indirect_miss);
    return;
  }
  jump_by_index(m_indirect_miss);
}

void Emitter::jump_by_index(asmjit::Label& miss) {
  a.rorx(kScratch, kAddress, 12);
  a.xor_(kScratch.r32(), kAddress.r32());
  a.and_(kScratch.r32(), kJumpIndexMask);
  static_assert(sizeof(JumpEntry) == 16);
  jump_through_cache(host::gs_indexed(offsetof(Context, jumps) + offsetof(JumpEntry, tag), kScratch),
                     host::gs_indexed(offsetof(Context, jumps) + offsetof(JumpEntry, target), kScratch),
                     miss);
}

// Where the dispatcher need not be asked.
bool Emitter::jumps_on() const { return !mode.step && !mode.slow && optimizations().jumps; }

// R10 = target; flags are in the image. See LinkStamp for the comparison.
void Emitter::jump_through_cache(const Mem& tag, const Mem& destination, asmjit::Label& miss) {
  if (!miss.isValid()) miss = a.newLabel();
  a.mov(ANYKVM_GS(state.rip), kAddress);
  a.add(kAddress, ANYKVM_GS(stamp));
  a.add(kAddress, tag);
  a.jnz(miss);
  a.jmp(destination);
}

// --- Sites ---

void Emitter::record_site(bool fault, FlagsNow flags, const u8* borrowed) {
  Site site;
  site.offset = offset();
  site.guest_offset = static_cast<u16>(m_rip - m_block.rip);
  site.fault = fault;
  site.flags = flags.at;
  if (borrowed) site.borrowed[0] = borrowed[0], site.borrowed[1] = borrowed[1];
  add_site(site, flags.recipe);
}

void Emitter::add_site(Site site, u8 recipe) {
  if (const FlagRecovery* made = recovery(recipe)) site.recovery = m_records.ref(made);
  m_sites.push_back(site);
}

void Emitter::record_fault_site(const u8* borrowed) { record_site(true, flags_before(), borrowed); }
void Emitter::record_call_site() { record_site(false, flags_before(), nullptr); }

// --- Flags that were let go ---

const FlagRecovery* Emitter::recovery(u8 recipe) {
  if (recipe == kNoRecipe) return nullptr;
  const FlagRecovery*& made = m_recoveries[recipe];
  if (made) return made;
  FlagRecovery what = m_flag_plan[recipe].what;
  what.before = recovery(m_flag_plan[recipe].before);
  return made = m_records.make(what);
}

// Flags for whoever leaves the block, without registers lent. Clobbers R10 and R11.
void Emitter::settle(FlagsNow* flags) {
  if (flags->at != FlagsAt::kRecovered && flags->at != FlagsAt::kRound) return;
  asmjit::Label done = a.newLabel();
  if (flags->at == FlagsAt::kRound) {
    if (m_block.round_register == kNoRegister) {
      a.cmp(ANYKVM_GS(later_round), 0);
    } else {
      load_unlent(m_block.round_register);
      a.cmp(kScratch, ANYKVM_GS(first_round));
    }
    a.je(done);
  }
  a.mov(kScratch, reinterpret_cast<u64>(recovery(flags->recipe)));
  a.call(asmjit::Imm(reinterpret_cast<u64>(m_thunks.recover_flags)));
  a.bind(done);
  *flags = {FlagsAt::kImage};
}

// R11 = a guest register, which is where it is when no loop has lent it.
void Emitter::load_unlent(u8 gpr) {
  const u8 number = host::register_of(gpr);
  if (number == kNoRegister) {
    a.mov(kScratch, host::gpr_slot(gpr));
  } else {
    a.mov(kScratch, gpq(number));
  }
}

// --- Out-of-line parts ---

void Emitter::emit_jump_out(Exit& exit) {
  a.bind(exit.jump);
  leave_loop();
  settle(&exit.flags);
  jump_by_link(exit);
}

// The dispatcher has RIP from the link.
void Emitter::emit_link_exit(Exit& exit, Block* block, u32 start) {
  if (exit.jump.isValid()) emit_jump_out(exit);
  a.bind(exit.label);
  const Link* link = m_records.make(Link{.from = m_records.ref(block),
                                         .displacement = start + exit.displacement,
                                         .unlinked = start + offset(),
                                         .target = static_cast<i16>(exit.target - m_block.rip),
                                         .flags_in_host = exit.flags.at != FlagsAt::kImage,
                                         .loops = exit.in_loop && exit.target == m_block.rip,
                                         .narrow = exit.narrow});
  ++block->link_count;
  if (exit.in_loop) leave_loop();
  settle(&exit.flags);
  a.mov(kScratch.r32(), m_records.ref(link));
  a.jmp(asmjit::Imm(reinterpret_cast<u64>(leave_thunk(exit.flags.at))));
}

void Emitter::emit_exit(Exit& exit) {
  a.bind(exit.label);
  if (exit.in_loop) leave_loop();
  settle(&exit.flags);
  load_rip(kAddress, exit.target);
  a.mov(ANYKVM_GS(state.rip), kAddress);
  a.mov(kScratch.r32(), 0);
  a.jmp(asmjit::Imm(reinterpret_cast<u64>(leave_thunk(exit.flags.at))));
}

void Emitter::emit_far_exit(const FarExit& exit) {
  a.bind(exit.label);
  m_flags = exit.flags;
  jump_to(exit.target);
}

void Emitter::emit_miss(const Miss& miss) {
  const bool slot = MissInfo::has_slot(miss.info), by_delta = miss.base != kNoRegister;
  const u8* thunk = slot ? m_thunks.slot_miss[MissInfo::write(miss.info)] : m_thunks.tlb_miss;
  a.bind(miss.entry);
  if (by_delta) {
    load_linear(kAddress, miss);
  } else if (slot) {
    a.add(kAddress, host::gs(slot_offset(miss) + offsetof(AccessSlot, first)));
  } else {
    a.add(kAddress, host::gs_indexed(miss.tag, kScratch));
  }
  a.mov(miss.info >> 32 ? Gp(kScratch) : Gp(kScratch.r32()), miss.info);
  a.call(asmjit::Imm(reinterpret_cast<u64>(thunk)));
  add_site({offset(), miss.guest_offset, false, miss.flags.at, {kNoRegister, kNoRegister}},
           miss.flags.recipe);
  if (slot && MissInfo::knows_split_pages(miss.info)) {
    a.cmp(kAddress, kSplitPages);
    a.je(new_narrow_exit(miss));
  }
  if (by_delta) {
    a.mov(kScratch, kAddress);
    load_linear(kAddress, miss);
    a.sub(kScratch, kAddress);
  } else if (miss.indexed) {
    a.mov(kScratch.r32(), 0);
  }
  if (MissInfo::knows_crossing(miss.info)) emit_crossing(miss);
  a.jmp(miss.resume);
}

// The same code again, and the copy that it wrote to goes where it belongs.
void Emitter::emit_crossing(const Miss& miss) {
  a.cmp(ANYKVM_GS(crossing), 0);
  a.je(miss.resume);
  const u32 moved = offset() - miss.rest_begin;
  const u8* code = a.bufferData();
  const std::vector<u8> rest(code + miss.rest_begin, code + miss.rest_end);
  a.embed(rest.data(), rest.size());
  const std::size_t sites = m_sites.size();
  for (std::size_t i = 0; i < sites; ++i) {
    Site site = m_sites[i];
    if (site.offset < miss.rest_begin || site.offset >= miss.rest_end) continue;
    site.offset += moved;
    m_sites.push_back(site);
  }
  a.call(asmjit::Imm(reinterpret_cast<u64>(m_thunks.commit_crossing)));
  a.jmp(miss.after);
}

void Emitter::emit_aside(const Aside& aside) {
  a.bind(aside.entry);
  call_helper_thunk(aside.site, aside.flags);
  add_site({offset(), aside.guest_offset, false, FlagsAt::kImage, {kNoRegister, kNoRegister}}, kNoRecipe);
  if (!aside.resume.isValid()) return;
  if (aside.site->counts) count(Counted::kInstructions, -1);  // there it is counted again
  a.jmp(aside.resume);
}

Block* Emitter::finish(u32 start) {
  for (const FarExit& exit : m_far_exits) emit_far_exit(exit);
  for (const Miss& miss : m_misses) emit_miss(miss);
  for (const Aside& aside : m_asides) emit_aside(aside);
  for (const VectorLoad& load : m_vector_loads) {
    a.bind(load.entry);
    a.call(asmjit::Imm(reinterpret_cast<u64>(m_thunks.load_vector)));
    a.jmp(load.resume);
  }
  if (m_block.straddles && jumps_on()) emit_gate();
  Block* block = m_records.make(m_block);
  for (Exit& exit : m_exits) {
    if (exit.links) {
      emit_link_exit(exit, block, start);
    } else {
      emit_exit(exit);
    }
  }
  for (u32 word : site_words::pack(std::move(m_sites))) {
    m_records.make(word);
    ++block->site_words;
  }
  emit_cache_miss(m_cache_miss, kNoRecord);
  emit_cache_miss(m_indirect_miss, m_records.ref(block) | kIndirectBranch);
  return block;
}

void Emitter::emit_cache_miss(asmjit::Label miss, RecordRef left_by) {
  if (!miss.isValid()) return;
  a.bind(miss);
  a.mov(kScratch.r32(), left_by);
  a.jmp(asmjit::Imm(reinterpret_cast<u64>(jumps_on() ? m_thunks.jump_miss : m_thunks.leave_flags_in_image)));
}

}  // namespace anykvm::x86
