#include "x86/translate/emitter.h"

#include <Zydis/Zydis.h>

#include <limits>

namespace anykvm::x86 {

using namespace asmjit::x86;  // register names
using host::kScratch;

Emitter::Emitter(Assembler& assembler, const Thunks& thunks, SlotNumbers& slots, FarLinkNumbers& far_links,
                 RecordMemory& records, const Block& facts, const FlagPlan& flags,
                 const IgnoresFlags& ignores_flags)
    : a(assembler),
      mode(facts.mode),
      m_thunks(thunks),
      m_slots(slots),
      m_far_links(far_links),
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

void Emitter::count_pending() {
  for (unsigned i = 0; i < kCountedByCode; ++i) {
    if (m_pending[i]) count(static_cast<Counted>(i), m_pending[i]);
  }
  m_pending = {};
}

void Emitter::add_own_events() {
  for (unsigned i = 0; i < kCountedByCode; ++i) m_pending[i] += m_own.of[i];
  m_own = {};
}

void Emitter::retire() {
  add_own_events();
  count_pending();
}

// For the comparisons that look at the whole stamp.
void Emitter::show_overflows() {
  if (!mode.counters_overflow) return;
  constexpr unsigned kHighestByte = 56;
  for (unsigned index = 0; index < kLookedAt; ++index) {
    forget_delta();
    a.mov(kScratch, host::gs(offsetof(Context, events_left) + 8 * index));
    a.rorx(kScratch, kScratch, kHighestByte);
    a.mov(host::gs(offsetof(Context, stamp) + offsetof(LinkStamp, part.overflowed) + index, 1),
          kScratch.r8());
  }
}

// What polls look at: not zero if there is something to attend to.
Mem Emitter::attention() const { return host::gs(offsetof(Context, stamp), mode.counters_overflow ? 4 : 1); }

EventCounts Emitter::events_of(const Decoded& d) const {
  EventCounts events;
  events[Counted::kInstructions] = mode.counts_instructions;
  events[Counted::kBranches] = mode.counts_branches && is_branch(d);
  if (!mode.counts_accesses) return events;
  events[Counted::kLoads] = d.loads;
  events[Counted::kStores] = d.stores;
  events[Counted::kUpdates] = d.updates;
  if (mode.counters_overflow) events[Counted::kAccesses] = static_cast<u8>(d.loads + d.stores + d.updates);
  return events;
}

void Emitter::begin(unsigned number, const Decoded& decoded, const Policy& policy, u64 rip,
                    const FlagUse& flags, const GroupPlace& place) {
  m_decoded = &decoded;
  m_place = place;
  m_rip = rip;
  m_own = events_of(decoded);
  if (may_leave(decoded, policy)) count_pending();
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

}  // namespace anykvm::x86
