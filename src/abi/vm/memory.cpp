// Memory slots, the dirty log, and the addresses that real hardware borrows from the guest.
#include <errno.h>

#include "abi/handlers.h"
#include "core/vm.h"

namespace anykvm::abi::vm {

Result<long> set_user_memory_region(core::Vm& vm, const kvm_userspace_memory_region& region) {
  TRY(vm.set_user_memory_region(region));
  return 0;
}

// There is no guest_memfd, and with it the flag that gives the further fields a meaning is unknown.
Result<long> set_user_memory_region2(core::Vm& vm, const kvm_userspace_memory_region2& region) {
  TRY(vm.set_user_memory_region(
      {region.slot, region.flags, region.guest_phys_addr, region.memory_size, region.userspace_addr}));
  return 0;
}

// How many pages the kernel may spend on shadow page tables. There are none here; the number is kept.
Result<long> set_nr_mmu_pages(core::Vm& vm, u64 pages) {
  constexpr u64 kLeast = 64;
  if (pages < kLeast) return Error{EINVAL, "too few pages"};
  vm.set_mmu_pages(pages);
  return 0;
}

Result<long> get_nr_mmu_pages(core::Vm& vm, u64) { return static_cast<long>(vm.mmu_pages()); }

Result<long> get_dirty_log(core::Vm& vm, const kvm_dirty_log& log) {
  TRY(vm.get_dirty_log(log.slot, reinterpret_cast<u64>(log.dirty_bitmap)));
  return 0;
}

// VT-x without unrestricted guests needs three pages for a TSS. Nothing here does, so the address is only
// checked.
Result<long> set_tss_addr(core::Vm&, u64 address) {
  constexpr u64 kLast = (u64{1} << 32) - 3 * kPageSize;
  if (address > kLast) return Error{EINVAL, "the TSS would leave the 32-bit address space"};
  return 0;
}

Result<long> set_identity_map_addr(core::Vm& vm, const u64&) {
  if (vm.has_vcpus()) return Error{EINVAL, "vCPUs exist already"};
  return 0;
}

}  // namespace anykvm::abi::vm
