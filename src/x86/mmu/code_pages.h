#pragma once
// Pages that hold translated code, and who may write to pages without asking (DESIGN D7, D13).
// Owner: nobody; functions over a Cpu. Only the vCPU's thread, inside Cpu::run().
//
// A vCPU that writes announces itself in PageMeta::writer before it looks at has_code; one that translates
// sets has_code before it looks at writer. So one of the two always sees the other.

#include "base/types.h"
#include "x86/mmu/physical_memory.h"

namespace anykvm::x86 {

class Cpu;

namespace code_pages {

inline constexpr u8 kSeveralWriters = 255;

// Announces that the CPU may write to the page. True if the page holds translated code.
inline bool announce_write(const MemorySlot& slot, Gpa address, u8 cpu_number) {
  PageMeta& meta = slot.meta(address);
  u8 seen = meta.writer.load(std::memory_order_relaxed);
  // Two CPUs may announce themselves at once: neither may overwrite the other.
  while (seen != cpu_number && seen != kSeveralWriters) {
    if (meta.writer.compare_exchange_weak(seen, seen == 0 ? cpu_number : kSeveralWriters)) break;
  }
  std::atomic_thread_fence(std::memory_order_seq_cst);
  return meta.has_code.load(std::memory_order_seq_cst);
}

// Before C++ code writes `size` bytes (within one page): afterwards no translation made from them is entered
// again.
void before_write(Cpu& cpu, const MemorySlot& slot, Gpa address, unsigned size);

// Before the page is translated from: afterwards no vCPU writes to it unnoticed. May stop the world, so the
// CPU must be between blocks.
void claim_for_code(Cpu& cpu, const MemorySlot& slot, Gpa address);

// Did nobody announce a write since the claim? To be asked with the code cache's lock held, before the bytes
// are read: then whoever announces one later finds the page claimed, and waits for that lock before it
// writes.
inline bool claim_holds(const PageMeta& meta) { return meta.has_code.load() && meta.writer.load() == 0; }

}  // namespace code_pages
}  // namespace anykvm::x86
