#include "x86/translate/access_groups.h"

#include <Zydis/Zydis.h>

#include <algorithm>

#include "x86/mmu/access_slots.h"
#include "x86/translate/host.h"

namespace anykvm::x86 {
namespace {

constexpr i64 kLargestDisplacement = i64{1} << 30;

u16 mask_of(u8 gpr) { return static_cast<u16>(1u << gpr); }

// Spans that slots are made for (SlotNumbers): 1, 2, 4 and multiples of 8.
i64 rounded(i64 span) { return span <= 2 || span == 4 ? span : (span + 7) & ~i64{7}; }

bool is_resident(u8 base) { return base < 16 && host::register_of(base) != kNoRegister; }

// What the instruction adds to the stack pointer, beside anything else that it writes.
i64 stack_step(const Insn& insn, Rule rule) {
  const auto size = static_cast<i64>(insn.operand_size);
  switch (rule) {
    case Rule::kpush:
    case Rule::kpushf:
    case Rule::kcall:
      return -size;
    case Rule::kpop:
      return size;
    default:
      return 0;
  }
}

}  // namespace

// ADD, SUB, INC, DEC and LEA of a whole register and a constant.
bool adds_constant(const Decoded& d, u8* gpr, i64* constant) {
  const Insn& insn = d.insn;
  if (insn.operand_size != 8 || insn.opcode_map != 0) return false;
  if (insn.mnemonic == ZYDIS_MNEMONIC_LEA) {
    const MemoryOperand& m = insn.memory;
    const bool moves = m.base == insn.reg && m.index == kNoRegister && insn.address_size == 8;
    *gpr = insn.reg;
    *constant = m.displacement;
    return moves;
  }
  if (insn.has_memory || !d.rm_is_gpr) return false;
  *gpr = insn.rm;
  switch (insn.mnemonic) {
    case ZYDIS_MNEMONIC_INC:
      *constant = 1;
      return true;
    case ZYDIS_MNEMONIC_DEC:
      *constant = -1;
      return true;
    case ZYDIS_MNEMONIC_ADD:
      *constant = static_cast<i64>(insn.immediate);
      break;
    case ZYDIS_MNEMONIC_SUB:
      *constant = -static_cast<i64>(insn.immediate);
      break;
    default:
      return false;
  }
  return insn.opcode == 0x81 || insn.opcode == 0x83;
}

// What goes by Emitter::open_by_delta.
bool AccessGroups::access_of(const Decoded& d, const Policy& policy, Access* out) {
  const Insn& insn = d.insn;
  const MemoryOperand& m = insn.memory;
  if (policy.kind == Policy::Kind::kAsIs) {
    const bool simple = insn.has_memory && m.size != 0 && !d.high_byte && !d.masked_memory &&
                        m.index == kNoRegister && insn.address_size == 8;
    const bool based = m.segment == kFs || m.segment == kGs;
    if (!simple || based || !is_resident(m.base) || m.size > 64) return false;
    *out = {m.base, m.displacement, m.size, d.memory_write};
    return true;
  }
  const i64 size = insn.operand_size;
  switch (policy.rule) {
    case Rule::kpush:
    case Rule::kcall:
      *out = {kRsp, -size, insn.operand_size, true};
      return true;
    case Rule::kpop:
    case Rule::kret:
      *out = {kRsp, 0, insn.operand_size, false};
      return true;
    default:
      return false;
  }
}

void AccessGroups::add(const Decoded& d, const Policy& policy, bool may_lead, GroupPlace* place) {
  const bool own_code = policy.kind == Policy::Kind::kAsIs || policy.kind == Policy::Kind::kRule;
  if (!own_code) return forget(0xffff);  // a helper may change any mapping
  Access access{};
  if (access_of(d, policy, &access)) place_access(access, may_lead, place);
  follow_registers(d, policy);
  if (policy.kind != Policy::Kind::kRule || policy.rule != Rule::kjcc) return;
  for (Groups& groups : m_open) {
    for (Open& open : groups) open.certain = false;
  }
}

void AccessGroups::place_access(const Access& access, bool may_lead, GroupPlace* place) {
  Groups& groups = m_open[access.base];
  for (Open& open : groups) {
    if (join(open, access, place)) return;
  }
  const bool too_far = std::abs(access.displacement) > kLargestDisplacement;
  if (!may_lead || too_far || m_count == kMostGroups) return;
  place->group = m_count++;
  place->leads = true;
  place->writes = access.write;
  place->span = static_cast<u16>(access.size);
  m_leaders[place->group] = place;
  m_members[place->group] = 1;
  std::rotate(groups.begin(), groups.end() - 1, groups.end());
  groups[0] = {place, 0, access.displacement, access.displacement, access.displacement + access.size, true};
}

// A write joins those that read only where it is certain to come: the leader would ask for a permission that
// is not needed, and pages that are never written may lack it for good.
bool AccessGroups::join(Open& open, const Access& access, GroupPlace* place) {
  if (!open.leader || (access.write && !open.leader->writes && !open.certain)) return false;
  const i64 at = open.moved + access.displacement;
  const i64 low = std::min(open.low, at), high = std::max(open.high, at + access.size);
  if (rounded(high - low) > i64{kLongestSpan}) return false;
  open.low = low;
  open.high = high;
  open.leader->low = static_cast<i16>(low - open.leader_at);
  open.leader->span = static_cast<u16>(rounded(high - low));
  open.leader->writes |= access.write;
  place->group = open.leader->group;
  ++m_members[place->group];
  return true;
}

void AccessGroups::follow_registers(const Decoded& d, const Policy& policy) {
  const Insn& insn = d.insn;
  if (policy.kind == Policy::Kind::kRule && policy.rule != Rule::klea) {
    const i64 step = stack_step(insn, policy.rule);
    for (Open& open : m_open[kRsp]) open.moved += step;
    u16 written = d.gprs_written;
    const bool only_moves = step != 0 && !(policy.rule == Rule::kpop && insn.rm == kRsp);
    if (only_moves) written &= static_cast<u16>(~mask_of(kRsp));
    return forget(written);
  }
  u8 gpr = 0;
  i64 constant = 0;
  if (!adds_constant(d, &gpr, &constant)) return forget(d.gprs_written);
  for (Open& open : m_open[gpr]) {
    open.moved += constant;
    if (std::abs(open.moved) > kLargestDisplacement) open.leader = nullptr;
  }
}

void AccessGroups::forget(u16 gprs) {
  for (u8 gpr = 0; gpr < 16; ++gpr) {
    if (!(gprs & mask_of(gpr))) continue;
    for (Open& open : m_open[gpr]) open.leader = nullptr;
  }
}

// A leader without followers is an access like any other.
void AccessGroups::finish() {
  for (u8 i = 0; i < m_count; ++i) {
    if (m_members[i] == 1) *m_leaders[i] = {};
  }
}

}  // namespace anykvm::x86
