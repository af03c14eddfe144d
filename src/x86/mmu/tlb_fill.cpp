// The TLB miss of translated code. Compiled without vector instructions: the guest's may be in the host's
// registers.
#include <x86intrin.h>

#include "base/guarded_memory.h"
#include "base/optimizations.h"
#include "x86/cpu_private.h"
#include "x86/mmu/absent_pages.h"
#include "x86/mmu/code_pages.h"
#include "x86/mmu/paging.h"
#include "x86/translate/thunks.h"

namespace anykvm::x86 {
namespace {

u8* leave_for(Context* context, Leave why) {
  context->leave = why;
  return nullptr;
}

u8* leave_fault(Context* context, const GuestStop& stop) {
  context->leave = Leave::kStop;
  context->stop = stop;
  return nullptr;
}

// May the page be in the TLB for writing although nobody has written yet? Only if that changes nothing: the
// page is dirty in the guest's tables, nobody keeps a log, and there is no code.
bool may_be_written(const MemorySlot& slot, const Translation& t, u8 cpu_number) {
  if (!t.writable || slot.read_only || slot.dirty_bitmap) return false;
  return !slot.meta(t.gpa).has_code.load() && !code_pages::announce_write(slot, t.gpa, cpu_number);
}

// The page of `address` into the TLB; its host address, or null: not by way of the TLB. `write_follows`: for
// writing as well if it may_be_written().
Guest<u8*> map_page(Context& context, Gva address, bool write, bool write_follows, MmuIndex mmu) {
  Cpu& cpu = *context.cpu;
  if (u8* known = context.tlb[mmu].find(address, 1, write || write_follows)) return known;
  if (cpu.watches_data_near(address) || context.tlb[mmu].find_bus(address, write)) return nullptr;
  ++context.counts->tlb_misses;
  const PhysicalMemory& memory = cpu.machine().memory();
  const Translation t = TRY(translate(context.state, memory, address, write ? Access::kWrite : Access::kRead,
                                      Privilege::kCurrent, cpu.model().physical_address_bits()));
  const MemorySlot* slot = memory.find(t.gpa);
  if (!slot || (write && slot->read_only)) {
    context.tlb[mmu].fill_bus(address, t.gpa, write);
    return nullptr;
  }
  if (may_be_absent(context, *slot, t.gpa)) [[unlikely]]
    return GuestStop::absent(t.gpa);
  if (write) {
    if (code_pages::announce_write(*slot, t.gpa, cpu.number())) return nullptr;
    slot->mark_dirty(t.gpa);
  }
  if (t.page_size > kPageSize) cpu.note_large_page(address, t.page_size);
  u8* host = slot->host + (t.gpa - slot->base);
  const bool writable = write || (write_follows && may_be_written(*slot, t, cpu.number()));
  context.tlb[mmu].fill(address, host - address.page_offset(), writable, t.global);
  return host;
}

// The rest of an access that begins at `host` and goes on on the next page: is it there, and in the host's
// memory as well?
bool continues(Context& context, Gva address, const u8* host, bool write, MmuIndex mmu) {
  const Gva next = address.page() + kPageSize;
  const bool wraps = !context.state.code64() && (next.value & low_bits(32)) == 0;
  if (wraps) return false;
  auto second = map_page(context, next, write, false, mmu);
  return second.ok() && second.value() == host + (next - address);
}

constexpr unsigned kLargestCopy = 64;
constexpr unsigned kSplitsAside = 8;

// An access that begins at `own` and goes on on a page that is apart from it. On a copy of its bytes, of the
// same alignment, if it only reads, or if the block has code that brings the copy back.
u8* access_across_pages(Context& context, Gva address, u8* own, u64 info) {
  const unsigned size = MissInfo::size(info);
  const bool write = MissInfo::write(info);
  if (!context.state.code64() || !optimizations().crossings) return leave_for(&context, Leave::kSlow);
  if (MissInfo::leads(info)) return leave_for(&context, Leave::kNarrow);
  if (size > kLargestCopy || (write && !MissInfo::may_cross(info))) return leave_for(&context, Leave::kSlow);
  auto second = map_page(context, address.page() + kPageSize, write, false, MissInfo::mmu(info));
  if (!second.ok() || !second.value()) return leave_for(&context, Leave::kSlow);
  if (write && !MissInfo::knows_crossing(info)) return leave_for(&context, Leave::kCrosses);
  static_assert(sizeof context.bounce >= 2 * kLargestCopy);
  const auto in_first = static_cast<unsigned>(kPageSize - address.page_offset());
  const auto at = static_cast<u8>(address.value & 63);
  u8* const copy = context.bounce + at;
  const bool copied =
      guarded_copy(copy, own, in_first) && guarded_copy(copy + in_first, second.value(), size - in_first);
  if (!copied) return leave_for(&context, Leave::kSlow);
  if (write) {
    context.crossing = 1;
    context.crossing_at = at;
    context.crossing_size = static_cast<u8>(size);
    context.crossing_in_first = static_cast<u8>(in_first);
    context.crossing_to[0] = own;
    context.crossing_to[1] = second.value();
  }
  return copy;
}

// Do the bytes of a group lie on two pages that are there, but apart?
bool on_split_pages(const TlbTable& table, Gva first, unsigned size, bool write) {
  const u8* begin = table.find(first, 1, write);
  const u8* end = table.find(first + (size - 1), 1, write);
  return begin && end && end - begin != static_cast<i64>(size - 1);
}

}  // namespace

void Cpu::note_large_page(Gva address, u64 size) {
  u64 first = address.value & ~(size - 1);
  m_private->large_pages[address.value >> 63].add(first, first + size - 1);
}

// The leader of a group is an access like any other, as far as faults and slow forms are concerned. What
// follows it may never be executed, so its pages are only looked up.
extern "C" u8* anykvm_tlb_miss(Context* context, u64 linear, u64 info) {
  const bool write = MissInfo::write(info), own_write = MissInfo::own_write(info);
  const bool has_slot = MissInfo::has_slot(info), leads = MissInfo::leads(info);
  const MmuIndex mmu = MissInfo::mmu(info);
  if (has_slot && context->access.thrashes(MissInfo::slot(info), leads, __rdtsc()))
    return leave_for(context, Leave::kThrash);
  const Gva address(linear + MissInfo::own_at(info));
  const unsigned own_size = MissInfo::own_size(info), size = MissInfo::size(info);
  const bool crosses = address.page_offset() + own_size > kPageSize;
  if (!context->state.canonical(address.value) || !context->state.canonical(address.value + own_size - 1))
    return leave_for(context, Leave::kSlow);
  auto mapped = map_page(*context, address, own_write, write, mmu);
  if (!mapped.ok()) {
    const bool exact = !MissInfo::masked(info) && !crosses;
    return exact ? leave_fault(context, mapped.error()) : leave_for(context, Leave::kSlow);
  }
  u8* const own = mapped.value();
  if (!own) {
    const bool bus = context->tlb[mmu].find_bus(address, own_write);
    return leave_for(context, bus ? Leave::kBus : Leave::kSlow);
  }
  if (crosses && !continues(*context, address, own, own_write, mmu))
    return access_across_pages(*context, address, own, info);
  u8* const host = own - MissInfo::own_at(info);
  if (!has_slot && !leads) return host;
  const TlbTable& table = context->tlb[mmu];
  const TlbTable::Extent extent = optimizations().extents ? table.extent_around(address, write)
                                                          : TlbTable::Extent{address.page().value, kPageSize};
  const u64 at = linear - extent.first;
  const bool permitted = table.find(address, 1, write) != nullptr;
  const bool whole = permitted && at < extent.bytes && extent.bytes - at >= size;
  if (whole && has_slot)
    context->access.fill(MissInfo::slot(info), extent, size, reinterpret_cast<u64>(host) - linear);
  if (whole || !leads) return host;
  const bool split = MissInfo::knows_split_pages(info) && on_split_pages(table, Gva(linear), size, write);
  // The dispatcher sees some of those without a slot, and whether they are always split (LeavesLately).
  if (!split || (!has_slot && ++context->splits % kSplitsAside == 0))
    return leave_for(context, Leave::kNarrow);
  if (has_slot) context->access.note_split(MissInfo::slot(info), Gva(linear));
  return reinterpret_cast<u8*>(kSplitPages);
}

// Memory that the client takes away just now is gone with what was written to it.
extern "C" void anykvm_commit_crossing(Context* context) {
  const u8* copy = context->bounce + context->crossing_at;
  const unsigned first = context->crossing_in_first;
  context->crossing = 0;
  guarded_copy(context->crossing_to[0], copy, first);
  guarded_copy(context->crossing_to[1], copy + first, context->crossing_size - first);
}

// The elements of a gather or scatter, if all that are active are in RAM and none lies on two pages. Nothing
// is written before that is known.
extern "C" bool anykvm_gather(Context* context, u64 info) {
  auto& operands = context->gather;
  const unsigned size = GatherInfo::data_size(info), count = GatherInfo::count(info);
  const bool write = GatherInfo::scatter(info);
  u8* host[16] = {};
  for (unsigned i = 0; i < count; ++i) {
    const bool active = GatherInfo::vector_mask(info) ? operands.mask[(i + 1) * size - 1] >> 7
                                                      : operands.mask[i / 8] >> i % 8 & 1;
    if (!active) continue;
    i64 index = 0;
    if (GatherInfo::index_size(info) == 8) {
      __builtin_memcpy(&index, operands.index + 8 * i, 8);
    } else {
      i32 narrow = 0;
      __builtin_memcpy(&narrow, operands.index + 4 * i, 4);
      index = narrow;
    }
    const Gva address(operands.base + static_cast<u64>(index) * GatherInfo::scale(info));
    if (address.page_offset() + size > kPageSize || !context->state.canonical(address.value)) return false;
    auto mapped = map_page(*context, address, write, false, GatherInfo::mmu(info));
    if (!mapped.ok() || !mapped.value()) return false;
    host[i] = mapped.value();
  }
  for (unsigned i = 0; i < count; ++i) {
    u8* const element = operands.data + i * size;
    if (host[i] && !(write ? guarded_copy(host[i], element, size) : guarded_copy(element, host[i], size)))
      return false;
  }
  if (write) return true;
  for (unsigned i = count * size; i < sizeof operands.data; ++i) operands.data[i] = 0;
  return true;
}

}  // namespace anykvm::x86
