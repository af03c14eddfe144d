#pragma once
// One linear page, as an access to it ends up: RAM of the host, or the bus.
// Owner: nobody; functions over a Cpu. Only the vCPU's thread, inside Cpu::run().

#include "x86/cpu.h"
#include "x86/fault.h"
#include "x86/mmu/paging.h"
#include "x86/mmu/physical_memory.h"
#include "x86/mmu/tlb.h"

namespace anykvm::x86 {

// The TLB for an access. Implicit ones of the supervisor may touch what explicit ones may with SMAP in force
// (SDM 3A 4.6.1).
MmuIndex mmu_of(const CpuState& state, Privilege privilege);

struct PageAccess {
  Gpa gpa{};                         // of the byte asked for
  u8* host = nullptr;                // of the same byte; null: not RAM for this kind of access, use the bus
  const MemorySlot* slot = nullptr;  // set if `host` is
  bool global = false;               // its translation
};

// The single place where C++ code turns a linear address into memory: permissions are checked and A and D
// flags set, but nothing is marked as written. Addresses without a slot are MMIO at once (SEEDS X9), and so
// are writes to read-only slots (KVM API 4.35). The answer holds up to the end of the page and of the current
// instruction.
Guest<PageAccess> resolve(Cpu& cpu, Gva address, Access access, Privilege privilege);

// Before `size` bytes at `page.host` (within the page) are written: the dirty log, and translations made from
// them.
void prepare_write(Cpu& cpu, const PageAccess& page, unsigned size);
// After prepare_write() of `page`, which was resolved for writing at `address`: into the TLB for the next
// ones, unless it holds code.
void remember_write(Cpu& cpu, Gva address, const PageAccess& page, Privilege privilege);

}  // namespace anykvm::x86
