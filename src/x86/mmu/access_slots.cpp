#include "x86/mmu/access_slots.h"

namespace anykvm::x86 {

namespace {

// 256 misses in less than this time (kilocycles of the host's TSC). A loop that walks through memory misses
// once in thousands of cycles, one that jumps about every few dozen. The TLB costs a few cycles more than a
// slot, a miss some forty, and nobody can tell which way the branch goes. A group is worth more misses.
constexpr u32 kThrashing = 256 * 400 / 1024, kThrashingGroup = kThrashing / 6;

// Does the page that begins at `page` hold bytes of the slot, whose extent begins at `first`? It may be told
// of a page more at the end, since the slot does not know its span.
bool overlaps(const AccessSlot& slot, u64 first, u64 page) {
  return page - first < slot.length + kLongestSpan;
}

}  // namespace

unsigned SlotNumbers::number_of(unsigned span) {
  switch (span) {
    case 1:
      return 0;
    case 2:
      return 1;
    case 4:
      return 2;
    default:
      return span % 8 == 0 && span != 0 && span <= kLongestSpan ? 2 + span / 8 : kSpans;
  }
}

u32 SlotNumbers::next(MmuIndex mmu, bool write, unsigned span, bool may_share) {
  const unsigned number = number_of(span);
  if (number == kSpans) return kNoSlot;
  Kind& kind = m_kinds[(mmu * 2u + write) * kSpans + number];
  if (kind.used % kPiece == 0) {
    const bool all_used = kind.used == kind.pieces.size() * kPiece;
    if (all_used && m_untaken < kSlotCount) {
      kind.pieces.push_back(m_untaken);
      m_untaken += kPiece;
    } else if (all_used) {
      m_short = true;
      if (!may_share) return kNoSlot;
      kind.used = 0;
    }
  }
  if (kind.pieces.empty()) return kNoSlot;
  const u32 slot = kind.pieces[kind.used / kPiece] + kind.used % kPiece;
  ++kind.used;
  return slot;
}

void SlotNumbers::take_back() {
  for (Kind& kind : m_kinds) kind.used = 0;
  m_short = false;
}

void AccessSlots::flush() {
  for (u32 i = 0; i < journal_size; ++i) slots[journal[i]].length = 0;
  journal_size = 0;
}

template <class Predicate>
void AccessSlots::empty_if(Predicate predicate) {
  u32 kept = 0;
  for (u32 i = 0; i < journal_size; ++i) {
    const u32 slot = journal[i];
    if (predicate(slots[slot])) {
      slots[slot].length = 0;
    } else {
      journal[kept++] = slot;
    }
  }
  journal_size = kept;
}

// To look at thousands costs more than to fill again those of them that are still in use, a page or two of
// code's.
bool AccessSlots::flush_rather() {
  if (journal_size <= kMostLookedAt) return false;
  flush();
  return true;
}

void AccessSlots::flush_page(Gva address) {
  if (flush_rather()) return;
  empty_if(
      [page = address.page().value](const AccessSlot& slot) { return overlaps(slot, slot.first, page); });
}

// Read slots are emptied as well: they find their page in the TLB again.
void AccessSlots::forbid_writes(const u8* host_page) {
  if (flush_rather()) return;
  empty_if([page = reinterpret_cast<u64>(host_page)](const AccessSlot& slot) {
    return overlaps(slot, slot.first + slot.delta, page);
  });
}

bool AccessSlots::thrashes(u32 slot, bool leads, u64 now) {
  if (misses[slot] != 0) return false;
  const u32 before = notes[slot].since;
  notes[slot].since = static_cast<u32>(now / 1024);
  return notes[slot].since - before < (leads ? kThrashingGroup : kThrashing);
}

}  // namespace anykvm::x86
