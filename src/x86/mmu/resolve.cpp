#include "x86/mmu/resolve.h"

#include "x86/machine.h"
#include "x86/mmu/code_pages.h"

namespace anykvm::x86 {

Guest<PageAccess> resolve(Cpu& cpu, Gva address, Access access, Privilege privilege) {
  const PhysicalMemory& memory = cpu.machine().memory();
  Translation translation =
      TRY(translate(cpu.state(), memory, address, access, privilege, cpu.model().physical_address_bits()));
  const MemorySlot* slot = memory.find(translation.gpa);
  if (!slot || (slot->read_only && access == Access::kWrite))
    return PageAccess{translation.gpa, nullptr, nullptr};
  return PageAccess{translation.gpa, slot->host + (translation.gpa - slot->base), slot};
}

void prepare_write(Cpu& cpu, const PageAccess& page, unsigned size) {
  page.slot->mark_dirty(page.gpa);
  code_pages::before_write(cpu, *page.slot, page.gpa, size);
}

}  // namespace anykvm::x86
