#pragma once
// Writes to pages that hold translated code.
// Owner: nobody; functions over a Cpu. Only the vCPU's thread, inside Cpu::run().

#include "base/types.h"
#include "x86/mmu/physical_memory.h"

namespace anykvm::x86 {

class Cpu;

namespace code_pages {

// Call before a write to the page at `page` of `slot` when `slot.meta(page).has_code` is set: afterwards no
// translation made from the old bytes is entered again.
void before_write(Cpu& cpu, const MemorySlot& slot, Gpa page);

}  // namespace code_pages
}  // namespace anykvm::x86
