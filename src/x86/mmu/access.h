#pragma once
// How C++ code (instruction helpers, event delivery) reads and writes guest memory: segmentation, then paging, then RAM or
// the buses. Faults are exact; an access that crosses a page is checked on both pages before either is written.
// Owner: nobody; functions over a Cpu. Only the vCPU's thread, inside Cpu::run().

#include <type_traits>

#include "x86/cpu.h"
#include "x86/fault.h"
#include "x86/mmu/paging.h"

namespace anykvm::x86 {

// Linear addresses. `size` is 1 to 4096 bytes. MMIO goes through Cpu::io() in pieces of at most 8 bytes.
Guest<void> read_linear(Cpu& cpu, Gva address, void* data, unsigned size, Privilege privilege = Privilege::kCurrent);
Guest<void> write_linear(Cpu& cpu, Gva address, const void* data, unsigned size,
                         Privilege privilege = Privilege::kCurrent);
// Fails as a write would, and changes nothing (except A and D flags). For instructions that must not stop half-way.
Guest<void> probe_write(Cpu& cpu, Gva address, unsigned size, Privilege privilege = Privilege::kCurrent);

// Host address of the bytes if they are RAM within one page and the access is permitted; null if they are RAM across two
// pages or not RAM, or if it is more than 8 bytes on a page with a breakpoint. For LOCKed updates and bulk copies. The
// pointer is good until the current instruction ends; C++ code uses it by guarded accesses only (base/guarded_memory.h),
// since the client may unmap the page.
Guest<u8*> host_pointer(Cpu& cpu, Gva address, unsigned size, Access access,
                        Privilege privilege = Privilege::kCurrent);

// The write of a LOCKed update of up to 8 bytes in two pages: nothing may come between it and the read that gave `before`.
// True: `after` is there now. False: something did, or may have; the instruction starts over (GuestStop::again()). What is
// not RAM is just written.
Guest<bool> replace_across_pages(Cpu& cpu, Gva address, const void* before, const void* after, unsigned size);

template <class T>
Guest<T> load(Cpu& cpu, Gva address, Privilege privilege = Privilege::kCurrent) {
  static_assert(std::is_trivially_copyable_v<T>);
  T value{};
  TRY(read_linear(cpu, address, &value, sizeof value, privilege));
  return value;
}
template <class T>
Guest<void> store(Cpu& cpu, Gva address, T value, Privilege privilege = Privilege::kCurrent) {
  static_assert(std::is_trivially_copyable_v<T>);
  return write_linear(cpu, address, &value, sizeof value, privilege);
}

// Segment checks (SDM 3A 5.3, 5.5; in 64-bit mode the canonical form): type, limit (expand-down too), null, present.
// #SS(0) for SS, #GP(0) otherwise; #AC where alignment is checked. `offset` is already truncated to the address size.
Guest<Gva> linear_address(const CpuState& state, SegmentIndex segment, u64 offset, unsigned size, Access access);
// The same without #AC.
Guest<Gva> unaligned_address(const CpuState& state, SegmentIndex segment, u64 offset, unsigned size, Access access);

// Are data accesses of user code to be aligned now?
bool alignment_checked(const CpuState& state);
// Is this an operand of 2, 4 or 8 bytes that raises #AC (SDM 3A 6.15, vector 17)?
bool fails_alignment_check(const CpuState& state, Gva address, unsigned size);

// The byte at RIP + `offset`, for whoever reports an instruction. False where it cannot be fetched from RAM.
bool read_code_byte(Cpu& cpu, unsigned offset, u8* byte);

// Guest physical memory without paging, for tables that the CPU finds by physical address and for PV structures.
// False where it is not RAM, or the client has taken it away.
bool read_physical(Cpu& cpu, Gpa address, void* data, unsigned size);
bool write_physical(Cpu& cpu, Gpa address, const void* data, unsigned size);
// Reads at what the running guest, which may be a nested one, calls a physical address. False also where its hypervisor
// maps nothing there.
bool read_guest_physical(Cpu& cpu, Gpa address, void* data, unsigned size);

}  // namespace anykvm::x86
