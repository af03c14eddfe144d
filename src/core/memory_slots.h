#pragma once
// The rules of KVM_SET_USER_MEMORY_REGION (KVM API 4.35): which changes of the slot table are allowed, and
// what the table is afterwards. Owner: Vm, under Vm's slot lock. Plain data: nothing here stops a vCPU.

#include <linux/kvm.h>

#include <map>
#include <vector>

#include "base/expected.h"
#include "x86/mmu/physical_memory.h"

namespace anykvm::core {

// The kernel has 32764; so many mappings watched one by one would exhaust the client's (vm.max_map_count).
inline constexpr u32 kMaxMemorySlots = 4096;
// The second is what CPUs in system-management mode see (x86::kManagementSpace); bits 31:16 of a slot's
// number.
inline constexpr u32 kAddressSpaces = 2;
constexpr bool is_slot_number(u32 id) { return id >> 16 < kAddressSpaces && (id & 0xffff) < kMaxMemorySlots; }
// Guest physical addresses end here (52 bits, the architecture's limit).
inline constexpr u64 kGuestPhysicalEnd = u64{1} << 52;

class MemorySlots {
 public:
  // What a change did; kNothing needs no new layout.
  enum class Change : u8 { kNothing, kCreated, kMoved, kFlags, kDeleted };

  // Checks everything before it changes anything. EINVAL or EEXIST as the kernel gives them.
  Result<Change> set_region(const kvm_userspace_memory_region& region);

  // Pages count as dirty from the moment when logging begins (KVM_DIRTY_LOG_INITIALLY_SET).
  void set_logs_begin_full(bool full) { m_logs_begin_full = full; }

  // The slot with this id, or null.
  const x86::MemorySlot* find(u32 id) const;
  // The slots that share addresses with [first, end).
  std::vector<u32> between(u64 first, u64 end) const;
  std::vector<x86::MemorySlot> layout() const;

 private:
  Result<Change> remove(u32 id);
  Result<Change> create(const kvm_userspace_memory_region& region);
  Result<Change> modify(x86::MemorySlot& slot, const kvm_userspace_memory_region& region);
  void set_logging(x86::MemorySlot& slot, bool enabled) const;
  bool overlaps(const kvm_userspace_memory_region& region) const;

  std::map<u32, x86::MemorySlot> m_slots;
  std::map<u64, u32> m_by_base;  // base -> id
  bool m_logs_begin_full = false;
};

}  // namespace anykvm::core
