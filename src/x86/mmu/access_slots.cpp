#include "x86/mmu/access_slots.h"

namespace anykvm::x86 {

namespace {

// 256 misses in less than this time (host TSC). A loop that walks through memory misses once in thousands of
// cycles, one that jumps about every few dozen.
constexpr u64 kThrashingCycles = 256 * 128;

}  // namespace

void AccessSlots::flush() {
  for (u32 i = 0; i < journal_size; ++i) empty(journal[i]);
  journal_size = 0;
}

template <class Predicate>
void AccessSlots::empty_if(Predicate predicate) {
  u32 kept = 0;
  for (u32 i = 0; i < journal_size; ++i) {
    const u32 slot = journal[i];
    if (predicate(slots[slot])) {
      empty(slot);
    } else {
      journal[kept++] = slot;
    }
  }
  journal_size = kept;
}

void AccessSlots::flush_page(Gva address) {
  empty_if([page = address.page().value](const AccessSlot& slot) { return slot.tag == page; });
}

// Read slots are emptied as well: they find their page in the TLB again.
void AccessSlots::forbid_writes(const u8* host_page) {
  empty_if([wanted = reinterpret_cast<u64>(host_page)](const AccessSlot& slot) {
    return slot.tag + slot.delta == wanted;
  });
}

bool AccessSlots::thrashes(u32 slot, u64 now) {
  if (misses[slot] != 0) return false;
  const u64 before = since[slot];
  since[slot] = now;
  return now - before < kThrashingCycles;
}

}  // namespace anykvm::x86
