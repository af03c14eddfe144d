#pragma once
// One translation for each access in translated user code, in front of the TLB (DESIGN D7): the slot of an
// access stands at a constant place, so the check is off the path of the address. A slot holds an extent: as
// many pages in a row as one difference between host and linear addresses serves. Owner: Context of one vCPU.
// Only the vCPU's thread.
//
//   hit: linear - first < length      host address = linear + delta = linear - first + host
//
// `length` is the extent's less the bytes accessed, so accesses across a page boundary need no care. That is
// why a slot serves accesses of one size only: SlotNumbers hands them out by kind. The journal holds the
// slots that are filled, so flushes visit only these (docs/decisions/access-slots.md).

#include <array>
#include <unordered_set>
#include <vector>

#include "x86/mmu/tlb.h"

namespace anykvm::x86 {

inline constexpr u32 kSlotCount = 32768;
inline constexpr u32 kNoSlot = ~u32{0};
inline constexpr unsigned kLongestSpan = 256;  // bytes that one slot may be asked for

// Hands out slots to translations. Owner: CodeCache, whose mutex is held.
class SlotNumbers {
 public:
  SlotNumbers() { m_kinds.resize(kMmuIndexCount * 2 * kSpans); }

  // For accesses to `span` bytes. A slot, once handed out, stays of its kind for ever: of the TLB that it is
  // filled from, of reads or writes (permissions differ), of the span. When all of a kind are taken, accesses
  // that `may_share` do so. kNoSlot: none for that span, or none left.
  u32 next(MmuIndex mmu, bool write, unsigned span, bool may_share);
  // Is there a kind that has got all that it will ever have?
  bool short_of_slots() const { return m_short; }
  // Nobody uses any of them any more.
  void take_back();

  // Instructions that are to have none, since their slots missed all the time.
  void avoid(Gpa instruction) { m_avoided.insert(instruction.value); }
  bool avoids(Gpa instruction) const { return m_avoided.contains(instruction.value); }
  // Instructions whose access is not to lead a group (translate/access_groups.h).
  void leave_alone(Gpa instruction) { m_alone.insert(instruction.value); }
  bool leaves_alone(Gpa instruction) const { return m_alone.contains(instruction.value); }
  // Instructions that were found to write across two pages that are apart.
  void note_crossing(Gpa instruction) { m_crossing.insert(instruction.value); }
  bool crosses(Gpa instruction) const { return m_crossing.contains(instruction.value); }
  // Instructions whose accesses go to devices, so that they need not look into the TLB first.
  bool note_bus(Gpa instruction) { return m_bus.insert(instruction.value).second; }
  void forget_bus(Gpa instruction) { m_bus.erase(instruction.value); }
  bool goes_to_bus(Gpa instruction) const { return m_bus.contains(instruction.value); }
  // Pages of code that much of the time goes to (translate/hot_pages.h): what is there may share.
  void note_hot(Gpa page) { m_hot.insert(page.value); }
  void note_changed(Gpa page) { m_hot.erase(page.value); }
  bool is_hot(Gpa page) const { return m_hot.contains(page.value); }

  // Slots are handed to kinds in pieces of so many. Those of one block's accesses never meet.
  static constexpr u32 kPiece = 128;

 private:
  static constexpr unsigned kSpans = 3 + kLongestSpan / 8;
  // 1, 2, 4 and the multiples of 8 have numbers; kSpans: no slots for this one.
  static unsigned number_of(unsigned span);

  struct Kind {
    std::vector<u32> pieces;  // first slot of each
    u32 used = 0;
  };
  std::vector<Kind> m_kinds;
  u32 m_untaken = 0;
  bool m_short = false;
  std::unordered_set<u64> m_avoided, m_alone, m_crossing, m_bus, m_hot;
};

struct AccessSlot {
  u64 first;   // linear
  u64 length;  // bytes that an access may begin at; 0: empty
  u64 delta;   // host address - linear address
  u64 host;    // first + delta
};

// What only misses look at.
struct SlotNotes {
  u32 since;  // when the count of misses was 0 last, in kilocycles
  u32 split;  // where a group was found to begin that lies on two pages apart: low bits of the page's number
};

// SAFETY: only ever made by `new`, by itself or in a Context, so what no initializer names is zero.
struct AccessSlots : InZeroedMemory {
  AccessSlot slots[kSlotCount];
  u32 journal_size = 0;
  u32 journal[kSlotCount];

  // `extent` is at least `span` bytes long. Translated code's thunk does the same with single pages
  // (make_slot_miss).
  void fill(u32 slot, const TlbTable::Extent& extent, unsigned span, u64 delta) {
    AccessSlot& s = slots[slot];
    if (s.length == 0) journal[journal_size++] = slot;
    s.first = extent.first;
    s.length = extent.bytes - span + 1;
    s.delta = delta;
    s.host = extent.first + delta;
  }

  void flush();
  void flush_page(Gva address);
  void forbid_writes(const u8* host_page);

  // Remembers that a group which begins on the page of `address` is not in one piece. Nobody takes that back
  // where mappings change: whoever believes it is slower than need be, not wrong.
  void note_split(u32 slot, Gva address) { notes[slot].split = static_cast<u32>(address.value >> 12); }

  // Counts the misses of a slot. True at times, if they follow each other so closely that the access is
  // better off with the TLB alone. `leads`: it stands for several.
  bool thrashes(u32 slot, bool leads, u64 now);

  u8 misses[kSlotCount];  // modulo 256
  SlotNotes notes[kSlotCount];

 private:
  // A journal of so many slots is looked through for those of one page; a longer one is emptied.
  static constexpr u32 kMostLookedAt = 64;
  bool flush_rather();
  template <class Predicate>
  void empty_if(Predicate predicate);
};

}  // namespace anykvm::x86
