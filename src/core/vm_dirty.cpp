// Which pages the guest has written to: bitmaps by slot (KVM API 4.8, 4.117) and rings by vCPU (8.29).
#include <errno.h>

#include <algorithm>

#include "base/bits.h"
#include "base/client_memory.h"
#include "core/vcpu.h"
#include "core/vm.h"

namespace anykvm::core {

Result<const x86::MemorySlot*> Vm::logged_slot(u32 slot_id) const {
  if (m_dirty_ring_bytes.load()) return Error{ENXIO, "dirty pages are told by rings"};
  if (!is_slot_number(slot_id)) return Error{EINVAL, "no such slot or address space"};
  const x86::MemorySlot* slot = m_slots.find(slot_id);
  if (!slot || !slot->dirty_bitmap) return Error{ENOENT, "the slot has no dirty log"};
  return slot;
}

// Stopping the world flushes the TLBs, so the next write to a page whose bit is cleared is noticed again.
Result<> Vm::get_dirty_log(u32 slot_id, u64 client_bitmap) {
  std::lock_guard lock(m_slots_mutex);
  auto& bitmap = *TRY(logged_slot(slot_id))->dirty_bitmap;
  std::vector<u64> snapshot(bitmap.size());
  if (m_manual_dirty_log) {
    collect(m_published[slot_id].logs);
    std::ranges::copy(bitmap, snapshot.begin());
    return copy_to_client(client_bitmap, snapshot.data(), snapshot.size() * sizeof(u64));
  }
  m_machine->stop_the_world([&] {
    collect(m_published[slot_id].logs);
    for (std::size_t i = 0; i < bitmap.size(); ++i) snapshot[i] = bitmap[i].exchange(0);
  });
  auto copied = copy_to_client(client_bitmap, snapshot.data(), snapshot.size() * sizeof(u64));
  if (copied.ok()) return {};
  for (std::size_t i = 0; i < bitmap.size(); ++i) bitmap[i].fetch_or(snapshot[i]);
  return copied.error();
}

Result<> Vm::clear_dirty_log(const kvm_clear_dirty_log& request) {
  if (!m_dirty_ring_bytes.load() && request.first_page % 64)
    return Error{EINVAL, "not from a multiple of 64 pages on"};
  std::lock_guard lock(m_slots_mutex);
  const x86::MemorySlot* slot = TRY(logged_slot(request.slot));
  const u64 pages = slot->size / kPageSize;
  if (request.first_page > pages || request.num_pages > pages - request.first_page)
    return Error{EINVAL, "not pages of the slot"};
  const bool to_the_end = request.num_pages == pages - request.first_page;
  if (request.num_pages % 64 && !to_the_end) return Error{EINVAL, "not a multiple of 64 pages"};
  std::vector<u64> cleared(align_up(request.num_pages, 64) / 64);
  TRY(copy_from_client(cleared.data(), reinterpret_cast<u64>(request.dirty_bitmap),
                       cleared.size() * sizeof(u64)));
  m_machine->stop_the_world([&] {
    collect(m_published[request.slot].logs);
    for (std::size_t word = 0; word < cleared.size(); ++word)
      (*slot->dirty_bitmap)[request.first_page / 64 + word].fetch_and(~cleared[word]);
  });
  return {};
}

Result<> Vm::set_manual_dirty_log(u64 flags) {
  const bool enabled = flags & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE;
  const u64 allowed = enabled ? KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET : 0;
  if (flags & ~allowed) return Error{EINVAL, "unknown flags"};
  std::lock_guard lock(m_slots_mutex);
  m_manual_dirty_log = enabled;
  m_slots.set_logs_begin_full(flags & KVM_DIRTY_LOG_INITIALLY_SET);
  return {};
}

// --- Rings ---

Result<> Vm::set_dirty_ring_bytes(u64 bytes) {
  const u64 least = std::max<u64>(kDirtyRingReserve * sizeof(kvm_dirty_gfn), kPageSize);
  if (bytes < least || (bytes & (bytes - 1))) return Error{EINVAL, "too small, or not a power of 2"};
  if (bytes > kMaxDirtyRingBytes) return Error{E2BIG, "the rings would be too large"};
  std::lock_guard lock(m_mutex);
  if (m_dirty_ring_bytes.load()) return Error{EINVAL, "the rings have a size"};
  if (!m_vcpus.empty()) return Error{EINVAL, "vCPUs exist already"};
  if (has_private_memory()) return Error{EINVAL, "not for VMs with private memory"};
  m_dirty_ring_bytes = bytes;
  return {};
}

Result<long> Vm::reset_dirty_rings() {
  if (!m_dirty_ring_bytes.load()) return Error{EINVAL, "there are no dirty rings"};
  std::vector<DirtyRing::Page> pages;
  std::lock_guard lock(m_slots_mutex);
  {
    std::lock_guard vcpus_lock(m_mutex);
    for (auto& [id, vcpu] : m_vcpus) vcpu->dirty_ring().reset(&pages);
  }
  if (pages.empty()) return 0;
  m_machine->stop_the_world([&] {
    for (const DirtyRing::Page& entry : pages) {
      const x86::MemorySlot* slot = m_slots.find(entry.slot);
      if (!slot || !slot->dirty_bitmap || entry.page >= slot->size / kPageSize) continue;
      (*slot->dirty_bitmap)[entry.page / 64].fetch_and(~(u64{1} << (entry.page % 64)));
    }
  });
  return static_cast<long>(pages.size());
}

}  // namespace anykvm::core
