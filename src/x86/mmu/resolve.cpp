#include "x86/mmu/resolve.h"

#include "x86/machine.h"
#include "x86/mmu/code_pages.h"
#include "x86/translate/context.h"
#include "x86/translate/mode.h"

namespace anykvm::x86 {

namespace {

// For the next reads. Writes are left to translated code, which announces them (code_pages.h).
void remember(Cpu& cpu, Gva address, u8* host, const Translation& translation, Privilege privilege) {
  if (translation.page_size > kPageSize) cpu.note_large_page(address, translation.page_size);
  cpu.context().tlb[mmu_of(cpu.state(), privilege)].fill(address, host - address.page_offset(), false,
                                                         translation.global);
}

}  // namespace

MmuIndex mmu_of(const CpuState& state, Privilege privilege) {
  return privilege == Privilege::kSystem ? kMmuSupervisor : mmu_index(state);
}

Guest<PageAccess> resolve(Cpu& cpu, Gva address, Access access, Privilege privilege) {
  const PhysicalMemory& memory = cpu.machine().memory();
  Translation translation =
      TRY(translate(cpu.state(), memory, address, access, privilege, cpu.model().physical_address_bits()));
  const MemorySlot* slot = memory.find(translation.gpa);
  if (!slot || (slot->read_only && access == Access::kWrite))
    return PageAccess{translation.gpa, nullptr, nullptr};
  u8* host = slot->host + (translation.gpa - slot->base);
  if (access == Access::kRead) remember(cpu, address, host, translation, privilege);
  return PageAccess{translation.gpa, host, slot};
}

void prepare_write(Cpu& cpu, const PageAccess& page, unsigned size) {
  page.slot->mark_dirty(page.gpa);
  code_pages::before_write(cpu, *page.slot, page.gpa, size);
}

}  // namespace anykvm::x86
