#include "x86/mmu/code_pages.h"

#include "x86/cpu_private.h"

namespace anykvm::x86::code_pages {

void before_write(Cpu& cpu, const MemorySlot& slot, Gpa address, unsigned size) {
  if (!announce_write(slot, address, cpu.number())) return;
  if (cpu.machine().code().before_write(address, size))
    slot.meta(address).has_code.store(0, std::memory_order_seq_cst);
}

void claim_for_code(Cpu& cpu, const MemorySlot& slot, Gpa address) {
  PageMeta& meta = slot.meta(address);
  if (meta.has_code.exchange(1, std::memory_order_seq_cst)) return;
  u8 writer = meta.writer.load(std::memory_order_seq_cst);
  if (writer == 0) return;
  if (writer == cpu.number()) {
    const u8* page = slot.host + (address.page() - slot.base);
    for (TlbTable& table : cpu.context().tlb) table.forbid_writes(page);
    meta.writer.store(0, std::memory_order_seq_cst);
    return;
  }
  cpu.stop_the_world([&] { meta.writer.store(0, std::memory_order_seq_cst); });
}

}  // namespace anykvm::x86::code_pages
