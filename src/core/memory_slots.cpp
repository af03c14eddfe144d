#include "core/memory_slots.h"

#include <errno.h>

#include <algorithm>

#include "base/bits.h"

namespace anykvm::core {
namespace {

constexpr u32 kKnownFlags = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY;
constexpr u64 kMaxPages = (u64{1} << 31) - 1;
// Where the kernel's half of the address space begins for a process with 4-level tables.
constexpr u64 kUserEnd = (u64{1} << 47) - kPageSize;

bool page_aligned(u64 value) { return (value & (kPageSize - 1)) == 0; }

Result<> check(const kvm_userspace_memory_region& region) {
  if (region.flags & ~kKnownFlags) return Error{EINVAL, "unknown memory region flags"};
  if (!page_aligned(region.memory_size)) return Error{EINVAL, "size is not a multiple of the page size"};
  if (!page_aligned(region.guest_phys_addr)) return Error{EINVAL, "guest address is not page-aligned"};
  if (!page_aligned(region.userspace_addr)) return Error{EINVAL, "host address is not page-aligned"};
  if (region.memory_size > kUserEnd || region.userspace_addr > kUserEnd - region.memory_size)
    return Error{EINVAL, "host range is not in user space"};
  if (!is_slot_number(region.slot)) return Error{EINVAL, "no such slot or address space"};
  if (region.guest_phys_addr + region.memory_size < region.guest_phys_addr)
    return Error{EINVAL, "guest range wraps around"};
  if (region.memory_size / kPageSize > kMaxPages) return Error{EINVAL, "slot is too large"};
  return {};
}

Result<> check_guest_range(const kvm_userspace_memory_region& region) {
  const u64 space = region.slot >> 16 ? x86::kManagementSpace : 0;
  if ((region.guest_phys_addr & ~space) + region.memory_size > kGuestPhysicalEnd)
    return Error{EINVAL, "guest range is beyond physical addresses"};
  return {};
}

}  // namespace

Result<MemorySlots::Change> MemorySlots::set_region(const kvm_userspace_memory_region& request) {
  TRY(check(request));
  kvm_userspace_memory_region region = request;
  if (request.slot >> 16) {
    if (request.guest_phys_addr & x86::kManagementSpace) return Error{EINVAL, "beyond physical addresses"};
    TRY(check_guest_range(request));
    region.guest_phys_addr |= x86::kManagementSpace;
  }
  if (region.memory_size == 0) return remove(region.slot);
  auto existing = m_slots.find(region.slot);
  return existing == m_slots.end() ? create(region) : modify(existing->second, region);
}

Result<MemorySlots::Change> MemorySlots::remove(u32 id) {
  auto slot = m_slots.find(id);
  if (slot == m_slots.end()) return Error{EINVAL, "no such slot to delete"};
  m_by_base.erase(slot->second.base.value);
  m_slots.erase(slot);
  return Change::kDeleted;
}

Result<MemorySlots::Change> MemorySlots::create(const kvm_userspace_memory_region& region) {
  if (overlaps(region)) return Error{EEXIST, "guest range overlaps another slot"};
  TRY(check_guest_range(region));
  x86::MemorySlot slot;
  slot.id = region.slot;
  slot.base = Gpa(region.guest_phys_addr);
  slot.size = region.memory_size;
  slot.host = reinterpret_cast<u8*>(region.userspace_addr);
  slot.read_only = region.flags & KVM_MEM_READONLY;
  slot.pages = x86::PageMetas::create(region.memory_size / kPageSize);
  if (!slot.pages) return Error{ENOMEM, "no memory to keep track of the slot's pages"};
  set_logging(slot, region.flags & KVM_MEM_LOG_DIRTY_PAGES);
  m_by_base[region.guest_phys_addr] = region.slot;
  m_slots.emplace(region.slot, std::move(slot));
  return Change::kCreated;
}

// Address and logging of a slot may change; size, host memory and read-only may not (the client deletes it
// first).
Result<MemorySlots::Change> MemorySlots::modify(x86::MemorySlot& slot,
                                                const kvm_userspace_memory_region& region) {
  const bool read_only = region.flags & KVM_MEM_READONLY;
  const bool logging = region.flags & KVM_MEM_LOG_DIRTY_PAGES;
  if (reinterpret_cast<u64>(slot.host) != region.userspace_addr || slot.size != region.memory_size ||
      slot.read_only != read_only)
    return Error{EINVAL, "size, host address and read-only of a slot cannot change"};
  const bool moved = slot.base.value != region.guest_phys_addr;
  if (!moved && logging == (slot.dirty_bitmap != nullptr)) return Change::kNothing;
  if (moved && overlaps(region)) return Error{EEXIST, "guest range overlaps another slot"};
  TRY(check_guest_range(region));
  set_logging(slot, logging);  // the step that memory may not suffice for
  m_by_base.erase(slot.base.value);
  m_by_base[region.guest_phys_addr] = region.slot;
  slot.base = Gpa(region.guest_phys_addr);
  return moved ? Change::kMoved : Change::kFlags;
}

void MemorySlots::set_logging(x86::MemorySlot& slot, bool enabled) const {
  if (!enabled) return slot.dirty_bitmap.reset();
  if (slot.dirty_bitmap) return;
  const u64 pages = slot.size / kPageSize;
  slot.dirty_bitmap = std::make_shared<std::vector<std::atomic<u64>>>(align_up(pages, 64) / 64);
  for (u64 first = 0; m_logs_begin_full && first < pages; first += 64)
    (*slot.dirty_bitmap)[first / 64] = low_bits(static_cast<unsigned>(std::min<u64>(pages - first, 64)));
}

std::vector<u32> MemorySlots::between(u64 first, u64 end) const {
  std::vector<u32> ids;
  auto slot = m_by_base.upper_bound(first);
  if (slot != m_by_base.begin()) --slot;  // it may reach beyond `first`
  for (; slot != m_by_base.end() && slot->first < end; ++slot)
    if (slot->first + m_slots.at(slot->second).size > first) ids.push_back(slot->second);
  return ids;
}

bool MemorySlots::overlaps(const kvm_userspace_memory_region& region) const {
  const auto there = between(region.guest_phys_addr, region.guest_phys_addr + region.memory_size);
  return std::ranges::any_of(there, [&](u32 id) { return id != region.slot; });
}

const x86::MemorySlot* MemorySlots::find(u32 id) const {
  auto slot = m_slots.find(id);
  return slot == m_slots.end() ? nullptr : &slot->second;
}

std::vector<x86::MemorySlot> MemorySlots::layout() const {
  std::vector<x86::MemorySlot> layout;
  layout.reserve(m_slots.size());
  for (const auto& [id, slot] : m_slots) layout.push_back(slot);
  return layout;
}

}  // namespace anykvm::core
