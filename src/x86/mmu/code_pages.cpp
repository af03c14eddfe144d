#include "x86/mmu/code_pages.h"

#include "x86/cpu_private.h"
#include "x86/mmu/client_writes.h"

namespace anykvm::x86::code_pages {

void before_write(Cpu& cpu, const MemorySlot& slot, Gpa address, unsigned size) {
  if (!announce_write(slot, address, cpu.number())) return;
  if (!cpu.machine().code().before_write(address, size))
    return cpu.machine().client_writes().guest_writes_beside_code(slot, address);
  cpu.machine().client_writes().guest_overwrote_code(slot, address);
  // CPUs see even the next instruction as it was rewritten (firmware patches its INT n so), and the writer
  // may stand in a block of this page.
  cpu.request(kAttentionCode);
}

void claim_for_code(Cpu& cpu, const MemorySlot& slot, Gpa address) {
  PageMeta& meta = slot.meta(address);
  // There may be a writer although the page was claimed before: one that is about to write next to the code.
  meta.has_code.store(1, std::memory_order_seq_cst);
  cpu.machine().client_writes().claim(slot, address);
  u8 writer = meta.writer.load(std::memory_order_seq_cst);
  if (writer == 0) return;
  if (writer == cpu.number() && writer != kSeveralWriters) {
    const u8* page = slot.host + (address.page() - slot.base);
    for (TlbTable& table : cpu.context().tlb) table.forbid_writes(page);
    cpu.context().access.forbid_writes(page);
    if (meta.writer.compare_exchange_strong(writer, 0)) return;
  }
  cpu.stop_the_world([&] {
    // Another change of the world may have come first and taken the slot away.
    if (const MemorySlot* now = cpu.machine().memory().find(address))
      now->meta(address).writer.store(0, std::memory_order_seq_cst);
  });
}

}  // namespace anykvm::x86::code_pages
