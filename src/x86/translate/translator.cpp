#include "x86/translate/translator.h"

#include <Zydis/Zydis.h>

#include <algorithm>
#include <array>
#include <limits>
#include <new>

#include "base/counters.h"
#include "base/optimizations.h"
#include "x86/translate/policy.h"
#include "x86/translate/rules.h"

namespace anykvm::x86 {
namespace {

constexpr unsigned kMaxInstructions = FlagPlan::kMost;
// So many conditional branches forwards leave a block on its way; the next ends it.
constexpr unsigned kMaxWaysOut = 4;

struct Planned {
  Decoded decoded;
  Policy policy;
  bool open = true;  // no fault before it starts
  u64 rip = 0;
  FlagUse flags;
  GroupPlace place;
};

// In 16-bit code too EIP has 32 bits: segments may be larger than 64 KiB (system-management mode's are).
u64 advance_rip(const Mode& mode, u64 rip, unsigned length) {
  u64 next = rip + length;
  return mode.code64() ? next : next & 0xffffffff;
}

bool ends_block(const Planned& p) {
  if (!p.open) return true;
  switch (p.policy.kind) {
    case Policy::Kind::kUndefined:
      return true;
    case Policy::Kind::kHelper:
      return p.policy.flags & kOpEnd;
    case Policy::Kind::kRule:
      switch (p.policy.rule) {
        case Rule::kjmp:
        case Rule::kcall:
        case Rule::kret:
        case Rule::kjcc:
        case Rule::kjcxz:
        case Rule::kloop:
          return true;
        default:
          return false;
      }
    case Policy::Kind::kAsIs:
      return false;
  }
  return true;
}

// The state that enables x87 and vector instructions is folded into the mode, so these values stand for any
// that give the same mode; the helper that raises the fault looks at the real registers.
u64 representative_cr0(const Mode& mode) { return mode.x87 ? u64{0} : u64{kCr0Ts}; }
u64 representative_cr4(const Mode& mode) {
  return (mode.sse ? u64{kCr4Osfxsr} : 0) | (mode.avx ? u64{kCr4Osxsave} : 0);
}

// Raises what gate_of() finds now. With the state as it was translated for there is always something to
// raise.
Guest<void> op_raise_gate(Cpu& cpu, const Insn& insn) {
  const CpuState& state = cpu.state();
  Mode mode = compute_mode(state);
  Decoded d;
  u64 rip = state.rip - insn.length;
  if (decode(insn.bytes, insn.length, insn.code_bits, insn.stack_size, rip, &d) != DecodeStatus::kOk)
    return GuestStop::ud();
  switch (gate_of(d, policy_of(d), mode, state.cr0, state.cr4)) {
    case Gate::kNm:
      return GuestStop::nm();
    case Gate::kGp:
      return GuestStop::gp(0);
    default:
      return GuestStop::ud();
  }
}

Guest<void> op_invalid(Cpu&, const Insn&) { return GuestStop::ud(); }
Guest<void> op_too_long(Cpu&, const Insn&) { return GuestStop::gp(0); }

// Those whose code goes by Emitter::open_by_delta, or leaves R11 alone unless the Emitter says otherwise.
bool keeps_delta(Rule rule) {
  return rule == Rule::kpush || rule == Rule::kpop || rule == Rule::klea || rule == Rule::knop ||
         rule == Rule::kjcc;
}

class Run {
 public:
  Run(const Block& block, const u8* bytes, unsigned size, const SlotNumbers& slots, const KnownCode& known)
      : m_block(block), m_bytes(bytes), m_size(size), m_slots(slots), m_known(known) {}

  // False: the first instruction needs more bytes.
  bool plan() {
    const bool alone = m_block.mode.step || m_block.mode.slow || m_block.straddles;
    const unsigned limit = alone || !optimizations().blocks ? 1 : kMaxInstructions;
    u64 rip = m_block.rip;
    while (m_count < limit && m_used < m_size) {
      Planned& p = m_run[m_count];
      p.rip = rip;
      DecodeStatus status = decode(m_bytes + m_used, m_size - m_used, m_block.mode.code_bits,
                                   m_block.mode.stack_bytes, rip, &p.decoded);
      m_next_straddles = status == DecodeStatus::kTruncated;
      if (m_next_straddles) break;
      if (status == DecodeStatus::kInvalid) plan_fault(p, op_invalid);
      if (status == DecodeStatus::kTooLong) plan_fault(p, op_too_long);
      if (status == DecodeStatus::kOk) plan_valid(p);
      ++m_count;
      m_used += p.decoded.insn.length;
      rip = advance_rip(m_block.mode, rip, p.decoded.insn.length);
      if ((ends_block(p) && !falls_through(p, rip)) || rip < p.rip) break;
    }
    if (!m_count) return false;
    keep_shadow();
    find_bus_accesses();
    plan_flags();
    find_groups();
    return true;
  }

  void emit(Emitter& e) const {
    for (unsigned i = 0; i < m_count; ++i) {
      const Planned& p = m_run[i];
      e.begin(i, p.decoded, p.policy, p.rip, p.flags, p.place);
      emit_one(e, p);
      e.end_instruction();
    }
    if (!e.ended())
      e.jump_to(advance_rip(m_block.mode, m_run[m_count - 1].rip, m_run[m_count - 1].decoded.insn.length),
                m_next_straddles);
  }

  // Finds host registers for guest registers that have none, in a loop that uses fewer than there are.
  LoopRegisters loop_registers() const {
    LoopRegisters found;
    std::array<unsigned, 16> uses{};
    for (unsigned i = 0; i < m_count; ++i) {
      if (!keeps_loop_registers(m_run[i])) return {};
      for (u8 gpr = 0; gpr < 16; ++gpr) uses[gpr] += registers_of(m_run[i]) >> gpr & 1;
    }
    // The most used first. No lenders of those that OperandRegisters borrows.
    std::array<u8, 3> wanted = {kR10, kR11, kR15};
    std::stable_sort(wanted.begin(), wanted.end(), [&](u8 x, u8 y) { return uses[x] > uses[y]; });
    static constexpr u8 kLenders[] = {kR14, kR13, kR12, kR9, kR8, kRsp};
    const u8* lender = std::begin(kLenders);
    for (u8 gpr : wanted) {
      if (!uses[gpr]) continue;
      while (lender != std::end(kLenders) && uses[*lender]) ++lender;
      if (lender == std::end(kLenders)) break;
      found.guest[found.count] = gpr;
      found.lender[found.count++] = *lender++;
    }
    return found;
  }
  bool uses_vector() const {
    return std::any_of(m_run.begin(), m_run.begin() + m_count,
                       [](const Planned& p) { return p.decoded.vector != VectorClass::kNone; });
  }
  // Does the last instruction jump back to the first, and does no C++ come in between?
  bool loops() const {
    // What is narrow goes back to the form with groups.
    const bool linked = !m_block.mode.step && !m_block.mode.slow && !m_block.mode.narrow &&
                        !m_block.straddles && !m_on_bus && optimizations().links && optimizations().loops;
    const bool own_code = std::all_of(m_run.begin(), m_run.begin() + m_count, [](const Planned& p) {
      const bool may_call_cpp = p.policy.rule == Rule::kstring || p.policy.rule == Rule::kgather;
      return p.policy.kind == Policy::Kind::kAsIs || (p.policy.kind == Policy::Kind::kRule && !may_call_cpp);
    });
    if (!linked || !own_code) return false;
    const Planned& p = m_run[m_count - 1];
    if (!p.open || p.policy.kind != Policy::Kind::kRule) return false;
    const bool jumps = p.policy.rule == Rule::kjcc || p.policy.rule == Rule::kjmp;
    return jumps && !p.decoded.insn.has_memory &&
           p.rip + p.decoded.insn.length + p.decoded.insn.immediate == m_block.rip;
  }
  // Of the flags: a proof about the guest's code on this page, so it holds as long as the block does.
  bool ignores_flags_at(u64 rip) const {
    for (unsigned i = 0; i < m_count; ++i) {
      if (m_run[i].rip == rip) return m_flags.ignored_before(i);
    }
    const Block* known = m_known(rip);
    return known && !known->straddles && known->ignores_flags;
  }

  unsigned used() const { return m_used; }
  unsigned instructions() const { return m_count; }
  const FlagPlan& flags() const { return m_flags; }

 private:
  // No C++ sees the guest's registers meanwhile, and no rule names host registers that may be lent.
  bool keeps_loop_registers(const Planned& p) const {
    if (!m_block.mode.code64() || p.decoded.high_byte) return false;
    if (p.policy.kind == Policy::Kind::kAsIs) return true;
    if (p.policy.kind != Policy::Kind::kRule) return false;
    const Rule rule = p.policy.rule;
    return rule == Rule::kjcc || rule == Rule::kjmp || rule == Rule::klea || rule == Rule::knop;
  }
  static u16 registers_of(const Planned& p) {
    u16 used = p.decoded.gprs;
    const MemoryOperand& m = p.decoded.insn.memory;
    if (p.decoded.insn.has_memory && m.base < 16) used |= static_cast<u16>(1u << m.base);
    if (p.decoded.insn.has_memory && m.index < 16) used |= static_cast<u16>(1u << m.index);
    return used;
  }

  // Does the block go on behind a conditional branch? Forwards only: what follows a loop runs once. Not where
  // there is a block already.
  bool falls_through(const Planned& p, u64 next_rip) {
    if (!optimizations().branches) return false;
    if (!p.open || p.policy.kind != Policy::Kind::kRule || p.policy.rule != Rule::kjcc) return false;
    const Insn& insn = p.decoded.insn;
    const bool forwards = static_cast<i64>(insn.immediate) >= 0;
    return forwards && ++m_ways_out <= kMaxWaysOut && !m_known(next_rip);
  }

  void plan_fault(Planned& p, Op raise) {
    p.decoded = Decoded{};
    p.decoded.insn.length = 1;
    p.policy = {Policy::Kind::kHelper, Rule::kNone, raise, kOpEnd};
  }

  void plan_valid(Planned& p) {
    const Mode& mode = m_block.mode;
    p.policy = policy_of(p.decoded);
    Gate gate = gate_of(p.decoded, p.policy, mode, representative_cr0(mode), representative_cr4(mode));
    p.open = gate == Gate::kOpen;
    if (!p.open) p.policy = {Policy::Kind::kHelper, Rule::kNone, op_raise_gate, kOpEnd};
    bool instead =
        p.policy.kind == Policy::Kind::kHelper && optimizations().inlining && inline_in(mode, p.policy.rule);
    if (instead) p.policy.kind = Policy::Kind::kRule;
  }

  // No interrupt comes between STI and the next instruction. Within a block none ever does; at its end the
  // helper sees to it.
  void keep_shadow() {
    if (m_count && m_run[m_count - 1].policy.rule == Rule::ksti)
      m_run[m_count - 1].policy.kind = Policy::Kind::kHelper;
  }

  void find_bus_accesses() {
    for (unsigned i = 0; i < m_count && !m_block.roams; ++i)
      m_on_bus |= m_slots.goes_to_bus(m_block.gpa + (m_run[i].rip - m_block.rip));
  }

  void plan_flags() {
    for (unsigned i = 0; i < m_count; ++i) m_flags.add(m_run[i].decoded, m_run[i].policy, &m_run[i].flags);
    const Mode& mode = m_block.mode;
    m_flags.finish(!mode.code64() || !mode.direct_memory() || m_on_bus, loops());
  }

  void find_groups() {
    const Mode& mode = m_block.mode;
    if (!mode.code64() || !mode.direct_memory() || mode.narrow || m_on_bus || !optimizations().groups) return;
    AccessGroups groups;
    for (unsigned i = 0; i < m_count; ++i) {
      Planned& p = m_run[i];
      const bool may_lead = !m_slots.leaves_alone(m_block.gpa + (p.rip - m_block.rip));
      groups.add(p.decoded, p.policy, may_lead, &p.place);
    }
    groups.finish();
  }

  void emit_one(Emitter& e, const Planned& p) const {
    switch (p.policy.kind) {
      case Policy::Kind::kAsIs:
        emit_as_is(e, p.decoded);
        break;
      case Policy::Kind::kRule:
        emit_rule(e, p.decoded, p.policy);
        if (!keeps_delta(p.policy.rule)) e.forget_delta();
        break;
      case Policy::Kind::kHelper:
        e.call_helper(p.decoded.insn, p.policy.helper, p.policy.flags);
        break;
      case Policy::Kind::kUndefined:
        e.call_helper(p.decoded.insn, op_invalid, kOpEnd);
        break;
    }
  }

  const Block& m_block;
  const u8* m_bytes;
  unsigned m_size;
  const SlotNumbers& m_slots;
  const KnownCode& m_known;
  unsigned m_ways_out = 0;
  unsigned m_used = 0;
  bool m_next_straddles = false;
  bool m_on_bus = false;  // some instruction goes_to_bus()
  unsigned m_count = 0;
  std::array<Planned, kMaxInstructions> m_run;
  FlagPlan m_flags;
};

// An entry begins with one instruction of five bytes or more, eight-byte aligned, that a dead block replaces
// by a call in one store.
void emit_patchable_nop(asmjit::x86::Assembler& a) {
  static constexpr u8 kNop5[] = {0x0f, 0x1f, 0x44, 0x00, 0x00};
  a.embed(kNop5, sizeof kNop5);
}
void emit_patchable_nop8(asmjit::x86::Assembler& a) {
  static constexpr u8 kNop8[] = {0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00};
  a.embed(kNop8, sizeof kNop8);
}

// How far to move a loop, which stands at `at`, so that the fewest of `pairs` straddle two cache lines. Jumps
// that are patched stay within eight bytes.
unsigned best_shift(u64 at, const std::vector<Emitter::Pair>& pairs) {
  constexpr unsigned kLine = 64, kStep = 8;
  unsigned best = 0;
  long fewest = std::numeric_limits<long>::max();
  for (unsigned shift = 0; shift < kLine; shift += kStep) {
    const long straddling = std::count_if(pairs.begin(), pairs.end(), [&](const Emitter::Pair& pair) {
      return (at + shift + pair.begin) / kLine != (at + shift + pair.end - 1) / kLine;
    });
    if (straddling >= fewest) continue;
    best = shift;
    fewest = straddling;
  }
  return best;
}

// Returns Block::host_entry. The entry that the block has no use for comes first and falls into the other.
i8 emit_entries(asmjit::x86::Assembler& a, EntryFlags wanted) {
  if (wanted == EntryFlags::kIgnored) return emit_patchable_nop8(a), i8{0};
  emit_patchable_nop(a);
  if (wanted == EntryFlags::kHost) {
    host::restore_flags_by(a, host::kScratch);
  } else {
    host::save_flags_by_scratch(a);
  }
  a.align(asmjit::AlignMode::kCode, 8);
  const auto second = static_cast<i8>(a.offset());
  emit_patchable_nop(a);
  return wanted == EntryFlags::kHost ? second : static_cast<i8>(-second);
}

// AsmJit would go on without an instruction that it had no memory for.
class ThrowsWithoutMemory final : public asmjit::ErrorHandler {
 public:
  void handleError(asmjit::Error error, const char*, asmjit::BaseEmitter*) override { check(error); }
  static void check(asmjit::Error error) {
    if (error == asmjit::kErrorOutOfMemory) throw std::bad_alloc();
  }
};

class Emission {
 public:
  Emission(const Block& facts, const Run& run, const TranslationPlace& place)
      : m_facts(facts), m_run(run), m_place(place), m_records(place.records.used()) {}

  // The block, whose code begins `lead` bytes further on than there is room, so that it has a good place in
  // its cache line; code() is what goes there. One made before is forgotten.
  Block* emit_behind(unsigned lead) {
    m_place.records.rewind(m_records);
    Block made = m_facts;
    made.code = m_place.code.next() + lead;
    made.ignores_flags = m_run.flags().entry() == EntryFlags::kIgnored;
    const auto base = reinterpret_cast<u64>(made.code);
    asmjit::CodeHolder code;
    ThrowsWithoutMemory thrower;
    thrower.check(code.init(asmjit::Environment::host(), base));
    code.setErrorHandler(&thrower);
    asmjit::x86::Assembler a;
    thrower.check(code.attach(&a));
    made.host_entry = emit_entries(a, m_run.flags().entry());
    const bool loops = m_run.loops();
    if (loops) made.loop_registers = m_run.loop_registers();
    const IgnoresFlags ignores_flags = [this](u64 rip) { return m_run.ignores_flags_at(rip); };
    Emitter emitter(a, m_place.thunks, m_place.slots, m_place.far_links, m_place.records, made, m_run.flags(),
                    ignores_flags);
    if (loops) emitter.begin_loop(m_run.uses_vector());
    m_run.emit(emitter);
    Block* block = emitter.finish(m_place.code.offset_of(made.code));
    m_pairs = emitter.pairs();
    thrower.check(code.flatten());
    thrower.check(code.resolveUnresolvedLinks());
    thrower.check(code.relocateToBase(base));
    m_code.assign(lead + code.codeSize(), 0xcc);
    code.copyFlattenedData(m_code.data() + lead, code.codeSize());
    block->host_bytes = static_cast<u32>(code.codeSize());
    return block;
  }

  const std::vector<u8>& code() const { return m_code; }
  const std::vector<Emitter::Pair>& pairs() const { return m_pairs; }

 private:
  const Block& m_facts;
  const Run& m_run;
  const TranslationPlace& m_place;
  const std::size_t m_records;
  std::vector<u8> m_code;
  std::vector<Emitter::Pair> m_pairs;
};

}  // namespace

Block* translate_block(const Block& facts, const u8* bytes, unsigned size, const TranslationPlace& place) {
  Run run(facts, bytes, size, place.slots, place.known);
  if (!run.plan()) return nullptr;
  ANYKVM_COUNT(blocks_translated);
  ANYKVM_COUNT_SEVERAL(instructions_translated, run.instructions());
  Block measured = facts;
  measured.guest_bytes = static_cast<u16>(run.used());
  Emission emission(measured, run, place);
  Block* block = emission.emit_behind(0);
  const auto at = reinterpret_cast<u64>(place.code.next());
  const unsigned lead = run.loops() ? best_shift(at, emission.pairs()) : 0;
  if (lead) block = emission.emit_behind(lead);
  place.code.put(emission.code().data(), emission.code().size());
  return block;
}

}  // namespace anykvm::x86
