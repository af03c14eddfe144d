// The VM's memory slots, and the parts of them that are private.
#include <errno.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/bits.h"
#include "base/trace.h"
#include "core/dirty_ring.h"
#include "core/vm.h"

namespace anykvm::core {
namespace {

bool overlap(u64 first_a, u64 size_a, u64 first_b, u64 size_b) {
  return first_a < first_b + size_b && first_b < first_a + size_a;
}

}  // namespace

Result<> Vm::check_backing(const kvm_userspace_memory_region& region, const GuestBacking& backing) const {
  if (m_backings.contains(region.slot) && region.memory_size)
    return Error{EINVAL, "a slot with guest memory can only be deleted"};
  if (!backing.memory) return {};
  if (m_slots.find(region.slot)) return Error{EINVAL, "guest memory comes with a new slot"};
  if (!backing.memory->belongs_to(*this)) return Error{EINVAL, "guest memory of another VM"};
  const u64 end = backing.offset + region.memory_size;
  if (backing.offset % kPageSize || end < backing.offset || end > backing.memory->size())
    return Error{EINVAL, "not within the guest memory"};
  for (const auto& [id, other] : m_backings) {
    const bool same = other.memory == backing.memory;
    if (same && overlap(backing.offset, region.memory_size, other.offset, m_slots.find(id)->size))
      return Error{EINVAL, "another slot has this part of the guest memory"};
  }
  return {};
}

Result<> Vm::set_user_memory_region(const kvm_userspace_memory_region& region, const GuestBacking& backing) {
  if (has_private_memory() && region.slot >> 16) return Error{EINVAL, "such a VM has one address space"};
  std::lock_guard lock(m_slots_mutex);
  TRY(check_backing(region, backing));
  auto change = TRY(m_slots.set_region(region));
  ANYKVM_TRACE(memory, "slot {} gpa {:#x} size {:#x} host {:#x} flags {:#x}: change {}", region.slot,
               region.guest_phys_addr, region.memory_size, region.userspace_addr, region.flags,
               static_cast<int>(change));
  if (change == MemorySlots::Change::kNothing) return {};
  m_stats.count(VmStat::memory_layout_changes);
  if (change == MemorySlots::Change::kDeleted) m_backings.erase(region.slot);
  if (backing.memory) m_backings[region.slot] = backing;
  return publish(std::span(&region.slot, 1));
}

Result<> Vm::set_private(u64 first, u64 end, bool is_private) {
  std::lock_guard lock(m_slots_mutex);
  m_private.set(first, end, is_private);
  m_any_private = !m_private.empty();
  return publish(m_slots.between(first, end));
}

bool Vm::is_private(Gpa address) {
  if (!m_any_private.load()) return false;
  std::lock_guard lock(m_slots_mutex);
  return m_private.contains(address.value);
}

// Private pages of a slot without guest memory are left out: accesses to them are for the client to resolve.
Result<> Vm::cut(const x86::MemorySlot& slot, std::vector<x86::MemorySlot>& layout,
                 std::vector<CutLog>& logs) const {
  const auto backing = m_backings.find(slot.id);
  for (const PrivateRanges::Piece& piece : m_private.cut(slot.base.value, slot.base.value + slot.size)) {
    if (piece.is_private && backing == m_backings.end()) continue;
    x86::MemorySlot& part = layout.emplace_back(slot);
    const u64 offset = piece.first - slot.base.value;
    part.base = Gpa(piece.first);
    part.size = piece.end - piece.first;
    part.host = piece.is_private ? backing->second.memory->data() + backing->second.offset + offset
                                 : slot.host + offset;
    part.pages = x86::PageMetas::create(part.size / kPageSize);
    if (!part.pages) return Error{ENOMEM, "no memory to keep track of the slot's pages"};
    if (!slot.dirty_bitmap) continue;
    part.dirty_bitmap =
        std::make_shared<std::vector<std::atomic<u64>>>(align_up(part.size / kPageSize, 64) / 64);
    logs.push_back({slot.id, offset / kPageSize, part.dirty_bitmap});
  }
  return {};
}

// The machine gets the slots of `ids` as they are now.
Result<> Vm::publish(std::span<const u32> ids) {
  x86::DirtyListener* const dirty_listener = dirty_ring_bytes() ? &DirtyRing::listener() : nullptr;
  std::vector<x86::MemorySlot> come;
  std::map<u32, Published> now;
  for (u32 id : ids) {
    Published& published = now[id];
    const x86::MemorySlot* slot = m_slots.find(id);
    if (!slot) continue;
    const std::size_t first = come.size();
    const auto pieces = m_private.cut(slot->base.value, slot->base.value + slot->size);
    if (pieces.size() == 1 && !pieces.front().is_private)
      come.push_back(*slot), come.back().dirty_listener = dirty_listener;
    else
      TRY(cut(*slot, come, published.logs));
    for (std::size_t part = first; part < come.size(); ++part) published.parts.push_back(come[part].base);
  }
  std::vector<Gpa> gone;
  std::vector<CutLog> old_logs;
  for (auto& [id, published] : now) {
    Published before = std::exchange(m_published[id], std::move(published));
    gone.insert(gone.end(), before.parts.begin(), before.parts.end());
    std::ranges::move(before.logs, std::back_inserter(old_logs));
  }
  m_machine->change_slots(gone, std::move(come));
  collect(old_logs);  // nobody writes to these any more
  return {};
}

void Vm::collect(const std::vector<CutLog>& logs) {
  for (const CutLog& log : logs) {
    const x86::MemorySlot* slot = m_slots.find(log.slot);
    if (!slot || !slot->dirty_bitmap) continue;
    for (std::size_t word = 0; word < log.bitmap->size(); ++word) {
      for (u64 left = (*log.bitmap)[word].exchange(0); left; left &= left - 1) {
        const u64 page = log.first_page + word * 64 + static_cast<u64>(__builtin_ctzll(left));
        (*slot->dirty_bitmap)[page / 64].fetch_or(u64{1} << (page % 64));
      }
    }
  }
}

}  // namespace anykvm::core
