// The TLB miss of translated code. Compiled without vector instructions: the guest's may be in the host's
// registers.
#include <x86intrin.h>

#include "x86/cpu_private.h"
#include "x86/mmu/code_pages.h"
#include "x86/mmu/paging.h"
#include "x86/translate/thunks.h"

namespace anykvm::x86 {
namespace {

u8* leave_slow(Context* context) {
  context->leave = Leave::kSlow;
  return nullptr;
}

u8* leave_fault(Context* context, const GuestStop& stop) {
  context->leave = Leave::kStop;
  context->stop = stop;
  return nullptr;
}

}  // namespace

void Cpu::note_large_page(Gva address, u64 size) {
  u64 first = address.value & ~(size - 1);
  m_private->large_pages[address.value >> 63].add(first, first + size - 1);
}

extern "C" u8* anykvm_tlb_miss(Context* context, u64 linear, u64 info) {
  Cpu& cpu = *context->cpu;
  bool write = MissInfo::write(info);
  if (MissInfo::has_slot(info) && context->access.thrashes(MissInfo::slot(info), __rdtsc())) {
    context->leave = Leave::kThrash;
    return nullptr;
  }
  Gva address(linear);
  bool crosses = address.page_offset() + MissInfo::size(info) > kPageSize;
  if (crosses || !context->state.canonical(linear)) return leave_slow(context);
  const PhysicalMemory& memory = cpu.machine().memory();
  auto found = translate(context->state, memory, address, write ? Access::kWrite : Access::kRead,
                         Privilege::kCurrent, cpu.model().physical_address_bits());
  if (!found.ok()) return MissInfo::masked(info) ? leave_slow(context) : leave_fault(context, found.error());
  const Translation& t = found.value();
  const MemorySlot* slot = memory.find(t.gpa);
  if (!slot || (write && slot->read_only)) return leave_slow(context);
  if (write) {
    if (code_pages::announce_write(*slot, t.gpa, cpu.number())) return leave_slow(context);
    slot->mark_dirty(t.gpa);
  }
  if (t.page_size > kPageSize) cpu.note_large_page(address, t.page_size);
  u8* host = slot->host + (t.gpa - slot->base);
  u8* host_page = host - address.page_offset();
  context->tlb[MissInfo::mmu(info)].fill(address, host_page, write, t.global);
  if (!MissInfo::has_slot(info)) return host;
  context->access.fill(MissInfo::slot(info), address.page().value, host_page);
  return host;
}

}  // namespace anykvm::x86
