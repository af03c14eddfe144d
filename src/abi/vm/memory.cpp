// Memory slots, the dirty log, and the addresses that real hardware borrows from the guest.
#include <errno.h>
#include <fcntl.h>

#include "abi/handlers.h"
#include "abi/objects.h"
#include "core/guest_memory.h"
#include "core/vm.h"

namespace anykvm::abi::vm {

Result<long> set_user_memory_region(core::Vm& vm, const kvm_userspace_memory_region& region) {
  TRY(vm.set_user_memory_region(region));
  return 0;
}

Result<long> set_user_memory_region2(core::Vm& vm, const kvm_userspace_memory_region2& region) {
  core::GuestBacking backing;
  const bool has_backing = region.flags & KVM_MEM_GUEST_MEMFD;
  const u32 flags = region.flags & ~u32{KVM_MEM_GUEST_MEMFD};
  if (has_backing && (flags || !vm.has_private_memory()))
    return Error{EINVAL, "flags that go with no guest memory, or a VM without private memory"};
  if (has_backing && region.memory_size) {
    const auto object = find_object(static_cast<int>(region.guest_memfd));
    const bool open = object || fcntl(static_cast<int>(region.guest_memfd), F_GETFD) >= 0;
    if (!object || !object->guest_memory) return Error{open ? EINVAL : EBADF, "not guest memory"};
    backing = {object->guest_memory, region.guest_memfd_offset};
  }
  TRY(vm.set_user_memory_region(
      {region.slot, flags, region.guest_phys_addr, region.memory_size, region.userspace_addr}, backing));
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

Result<long> clear_dirty_log(core::Vm& vm, const kvm_clear_dirty_log& request) {
  TRY(vm.clear_dirty_log(request));
  return 0;
}

Result<long> reset_dirty_rings(core::Vm& vm, u64) { return vm.reset_dirty_rings(); }

Result<long> enable_manual_dirty_log(core::Vm& vm, const kvm_enable_cap& request) {
  TRY(vm.set_manual_dirty_log(request.args[0]));
  return 0;
}

Result<long> enable_dirty_ring(core::Vm& vm, const kvm_enable_cap& request) {
  TRY(vm.set_dirty_ring_bytes(request.args[0]));
  return 0;
}

// VT-x without unrestricted guests needs three pages for a TSS. Nothing here does, so the address is only
// checked.
Result<long> set_tss_addr(core::Vm&, u64 address) {
  constexpr u64 kLast = (u64{1} << 32) - 3 * kPageSize;
  if (address > kLast) return Error{EINVAL, "the TSS would leave the 32-bit address space"};
  return 0;
}

Result<long> set_identity_map_addr(core::Vm& vm, ClientPtr<u64> address) {
  if (vm.has_vcpus()) return Error{EINVAL, "vCPUs exist already"};
  TRY(address.read());
  return 0;
}

}  // namespace anykvm::abi::vm
