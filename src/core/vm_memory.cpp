// The VM's memory slots, and the parts of them that are private.
#include <errno.h>

#include "base/bits.h"
#include "base/trace.h"
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
  return publish_layout();
}

Result<> Vm::set_private(u64 first, u64 end, bool is_private) {
  std::lock_guard lock(m_slots_mutex);
  m_private.set(first, end, is_private);
  m_any_private = !m_private.empty();
  return publish_layout();
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

Result<> Vm::publish_layout() {
  std::vector<x86::MemorySlot> layout;
  std::vector<CutLog> logs;
  for (x86::MemorySlot& slot : m_slots.layout()) {
    const auto pieces = m_private.cut(slot.base.value, slot.base.value + slot.size);
    if (pieces.size() == 1 && !pieces.front().is_private)
      layout.push_back(std::move(slot));
    else
      TRY(cut(slot, layout, logs));
  }
  std::swap(m_cut_logs, logs);
  m_machine->set_slots(std::move(layout));
  collect(logs);  // of the layout before, to which nobody writes any more
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
