#include "x86/mmu/physical_memory.h"

#include <algorithm>
#include <utility>

namespace anykvm::x86 {

namespace {

// Index of the slot that this thread found last. Only a hint: whatever it holds, the slot there is checked
// again, so it survives layout changes and serves every PhysicalMemory of the process. The initial-exec model
// keeps the access free of __tls_get_addr, whose slow path may use vector registers.
[[gnu::tls_model("initial-exec")]] thread_local std::size_t t_last_slot = 0;

}  // namespace

const MemorySlot* PhysicalMemory::find(Gpa address) const {
  const MemorySlot* slots = m_slots.data();
  std::size_t count = m_slots.size();
  if (t_last_slot < count && slots[t_last_slot].contains(address)) return &slots[t_last_slot];

  // The last slot whose base is not above `address` is the only candidate.
  std::size_t first = 0;
  while (count > 0) {
    std::size_t half = count / 2;
    bool right = slots[first + half].base <= address;
    first += right ? half + 1 : 0;
    count = right ? count - half - 1 : half;
  }
  if (first == 0 || !slots[first - 1].contains(address)) return nullptr;
  t_last_slot = first - 1;
  return &slots[first - 1];
}

Gpa PhysicalMemory::in_management_space(Gpa address) const {
  const Gpa moved = address + kManagementSpace;
  const MemorySlot* usual = find(address);
  const MemorySlot* own = find(moved);
  if (!usual && !own) return address;
  const bool same = usual && own && usual->read_only == own->read_only &&
                    usual->host + (address - usual->base) == own->host + (moved - own->base);
  return same ? address : moved;
}

u8* PhysicalMemory::host(Gpa address, u64 size) const {
  const MemorySlot* slot = find(address);
  if (!slot) return nullptr;
  u64 offset = address - slot->base;
  return size <= slot->size - offset ? slot->host + offset : nullptr;
}

void PhysicalMemory::change_slots(std::span<const Gpa> gone, std::vector<MemorySlot> come) {
  auto place = [this](Gpa base) {
    return std::lower_bound(m_slots.begin(), m_slots.end(), base,
                            [](const MemorySlot& slot, Gpa address) { return slot.base < address; });
  };
  for (Gpa base : gone) {
    if (auto slot = place(base); slot != m_slots.end() && slot->base == base) m_slots.erase(slot);
  }
  for (MemorySlot& slot : come) m_slots.insert(place(slot.base), std::move(slot));
}

void PhysicalMemory::set_slots(std::vector<MemorySlot> slots) {
  std::sort(slots.begin(), slots.end(),
            [](const MemorySlot& a, const MemorySlot& b) { return a.base < b.base; });
  m_slots = std::move(slots);
}

}  // namespace anykvm::x86
