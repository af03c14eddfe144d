#pragma once
// One translation for each access in translated user code, in front of the TLB (DESIGN D7): the slot of an
// access stands at a constant place, so the check is off the path of the address. Owner: Context of one vCPU.
// Only the vCPU's thread.
//
//   hit: linear - tag <= 4096 - size      host address = linear + delta
//
// Accesses get slots in turn when they are translated (SlotNumbers), reads and writes from areas of their
// own, because permissions differ; several may share one. The journal holds the slots that are filled, so
// flushes visit only these. Kernels have none: their accesses see another object each time
// (docs/decisions/access-slots.md).

#include <array>
#include <unordered_set>

#include "x86/mmu/tlb.h"

namespace anykvm::x86 {

inline constexpr u32 kSlotsOfKind = 16384;  // reads; as many for writes
inline constexpr u32 kSlotCount = 2 * kSlotsOfKind;

// Hands out slots to translations. Owner: CodeCache, whose mutex is held.
class SlotNumbers {
 public:
  u32 next(bool write) { return write * kSlotsOfKind + m_next[write]++ % kSlotsOfKind; }

  // Instructions that are to have none, since their slots missed all the time.
  void avoid(Gpa instruction) { m_avoided.insert(instruction.value); }
  bool avoids(Gpa instruction) const { return m_avoided.contains(instruction.value); }

 private:
  std::array<u32, 2> m_next{};
  std::unordered_set<u64> m_avoided;
};

struct AccessSlot {
  u64 tag;    // linear page, or kNever
  u64 delta;  // host address - linear address
};

struct AccessSlots {
  // An empty slot matches one page, which is not canonical; its host addresses are not either. So such an
  // access raises a host #GP, and then the slow form finds the right fault (Dispatcher::handle).
  static constexpr u64 kNever = u64{1} << 63;
  static constexpr u64 kNowhere = u64{1} << 62;

  AccessSlot slots[kSlotCount];
  u32 journal_size = 0;
  u32 journal[kSlotCount];

  AccessSlots() {
    for (u32 slot = 0; slot < kSlotCount; ++slot) empty(slot);
  }

  // The same as translated code's thunk does (make_slot_miss).
  void fill(u32 slot, u64 page, const u8* host_page) {
    if (slots[slot].tag == kNever) journal[journal_size++] = slot;
    slots[slot] = {page, reinterpret_cast<u64>(host_page) - page};
  }

  void flush();
  void flush_page(Gva address);
  void forbid_writes(const u8* host_page);

  // Counts the misses of a slot. True at times, if they follow each other so closely that the access is
  // better off with the TLB alone.
  bool thrashes(u32 slot, u64 now);

  // Of each slot: misses modulo 256, and when that was 0 last.
  u8 misses[kSlotCount] = {};
  u64 since[kSlotCount] = {};

 private:
  void empty(u32 slot) { slots[slot] = {kNever, kNowhere - kNever}; }
  template <class Predicate>
  void empty_if(Predicate predicate);
};

}  // namespace anykvm::x86
