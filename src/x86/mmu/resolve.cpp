#include "x86/mmu/resolve.h"

#include "x86/machine.h"
#include "x86/mmu/absent_pages.h"
#include "x86/mmu/code_pages.h"
#include "x86/translate/context.h"
#include "x86/translate/mode.h"

namespace anykvm::x86 {

namespace {

void remember(Cpu& cpu, Gva address, const PageAccess& page, bool write, Privilege privilege) {
  if (cpu.watches_data_near(address)) return;
  cpu.context().tlb[mmu_of(cpu.state(), privilege)].fill(address, page.host - address.page_offset(), write,
                                                         page.global);
}

PageAccess on_the_bus(Gpa gpa) { return {Gpa(gpa.value & ~kManagementSpace), nullptr, nullptr}; }

}  // namespace

MmuIndex mmu_of(const CpuState& state, Privilege privilege) {
  if (privilege == Privilege::kCurrent) return mmu_index(state);
  return state.svm.guest_mode ? kMmuNested : kMmuSupervisor;
}

Guest<PageAccess> resolve(Cpu& cpu, Gva address, Access access, Privilege privilege) {
  if (access != Access::kFetch) {
    const TlbTable& table = cpu.context().tlb[mmu_of(cpu.state(), privilege)];
    if (const Gpa* page = table.find_bus(address, access == Access::kWrite))
      return on_the_bus(*page + address.page_offset());
  }
  const PhysicalMemory& memory = cpu.machine().memory();
  Translation translation =
      TRY(translate(cpu.state(), memory, address, access, privilege, cpu.model().physical_address_bits()));
  const MemorySlot* slot = memory.find(translation.gpa);
  if (!slot || (slot->read_only && access == Access::kWrite)) {
    if (access != Access::kFetch)
      cpu.context().tlb[mmu_of(cpu.state(), privilege)].fill_bus(address, translation.gpa,
                                                                 access == Access::kWrite);
    return on_the_bus(translation.gpa);
  }
  if (privilege == Privilege::kCurrent && may_be_absent(cpu.context(), *slot, translation.gpa)) [[unlikely]]
    return GuestStop::absent(translation.gpa);
  if (translation.page_size > kPageSize) cpu.note_large_page(address, translation.page_size);
  const PageAccess page{translation.gpa, slot->host + (translation.gpa - slot->base), slot,
                        translation.global};
  if (access == Access::kRead) remember(cpu, address, page, false, privilege);
  return page;
}

void prepare_write(Cpu& cpu, const PageAccess& page, unsigned size) {
  page.slot->mark_dirty(page.gpa);
  code_pages::before_write(cpu, *page.slot, page.gpa, size);
}

// The write was announced, so whoever translates from the page from now on takes the entry back.
void remember_write(Cpu& cpu, Gva address, const PageAccess& page, Privilege privilege) {
  if (!page.slot->meta(page.gpa).has_code.load()) remember(cpu, address, page, true, privilege);
}

}  // namespace anykvm::x86
