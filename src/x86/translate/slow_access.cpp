// Memory accesses that the TLB cannot serve: MMIO, page crossings, code pages, segmentation, masked elements.
// The instruction works on a copy, which is written back afterwards.
#include <bit>
#include <cstring>

#include "x86/cpu_private.h"
#include "x86/mmu/access.h"
#include "x86/no_memory.h"
#include "x86/state/xsave.h"
#include "x86/translate/thunks.h"

namespace anykvm::x86 {
namespace {

// `at` and `size`: the part of the operand that is looked at.
Guest<Gva> site_address(const CpuState& state, u64 address, const SlowSite& site, unsigned at,
                        unsigned size) {
  Access access = site.write ? Access::kWrite : Access::kRead;
  // Masked moves do not check alignment (SDM 2C VMASKMOV), open() does.
  // The operand's address has 32 bits; what lies behind them, of a masked move too, is beyond any limit.
  if (site.segmented)
    return unaligned_address(state, site.segment, (address & low_bits(32)) + at, size, access);
  address += at;
  if (!state.canonical(address) || !state.canonical(address + size - 1))
    return site.segment == kSs ? GuestStop::ss(0) : GuestStop::gp(0);
  return Gva(address);
}

// One bit per element: which of them the instruction touches in memory.
u64 active_elements(const CpuState& state, const SlowSite& site) {
  unsigned count = site.size / site.element;
  if (!site.vector_mask) {
    u64 mask = 0;
    std::memcpy(&mask, state.xsave.data() + xsave_component(5).offset + 8u * site.mask, sizeof mask);
    mask &= low_bits(site.lanes);
    if (site.packed) return low_bits(static_cast<unsigned>(std::popcount(mask)));
    for (unsigned i = count; i < site.lanes; i += count) mask |= mask >> i;
    return mask & low_bits(count);
  }
  // Bytes 0-15 of vector register n are at 160 + 16n of the legacy area, bytes 16-31 in component 2 (SDM
  // 1 13.4.1).
  u8 vector[32];
  std::memcpy(vector, state.xsave.data() + 160 + 16u * site.mask, 16);
  std::memcpy(vector + 16, state.xsave.data() + xsave_component(2).offset + 16u * site.mask, 16);
  u64 mask = 0;
  for (unsigned i = 0; i < count; ++i) mask |= u64{vector[(i + 1) * site.element - 1]} >> 7 << i;
  return mask;
}

template <class EachElement>
Guest<void> for_active(const CpuState& state, const SlowSite& site, EachElement each) {
  u64 active = active_elements(state, site);
  for (unsigned i = 0; active >> i; ++i) {
    if (active >> i & 1) TRY(each(i * site.element));
    if (i == 63) break;
  }
  return {};
}

u8* copy_of(Context* context, u64 address) { return context->bounce + (address & 63); }

// Masked elements are addressed one by one: those that are not active must not fault in any way. `offset` is
// what the translated code gave; Context::bounce_address keeps it.
u64 linear_without_checks(const CpuState& state, u64 offset, const SlowSite& site) {
  return site.segmented ? state.segments[site.segment].base + offset : offset;
}

Guest<u8*> open_masked(Cpu& cpu, Context* context, u64 offset, const SlowSite& site) {
  const CpuState& state = cpu.state();
  u8* copy = copy_of(context, linear_without_checks(state, offset, site));
  TRY(for_active(state, site, [&](unsigned at) -> Guest<void> {
    Gva address = TRY(site_address(state, offset, site, at, site.element));
    if (site.write) return probe_write(cpu, address, site.element);
    return read_linear(cpu, address, copy + at, site.element);
  }));
  context->bounce_address = offset;
  return copy;
}

Guest<void> commit_masked(Cpu& cpu, Context* context, const SlowSite& site) {
  const CpuState& state = cpu.state();
  u64 offset = context->bounce_address;
  const u8* copy = copy_of(context, linear_without_checks(state, offset, site));
  return for_active(state, site, [&](unsigned at) -> Guest<void> {
    Gva address = TRY(site_address(state, offset, site, at, site.element));
    return write_linear(cpu, address, copy + at, site.element);
  });
}

// Context::bounce_address where the instruction worked on guest RAM itself.
constexpr u64 kInPlace = ~u64{0};

// LOCKed and in two pages. None has more than 8 bytes: CMPXCHG16B must be aligned.
bool split_lock(const SlowSite& site, Gva address) {
  return site.locked && site.size <= 8 && address.page_offset() + site.size > kPageSize;
}

Guest<u8*> open(Cpu& cpu, Context* context, u64 offset, const SlowSite& site) {
  if (site.element) return open_masked(cpu, context, offset, site);
  Gva address = TRY(site_address(cpu.state(), offset, site, 0, site.size));
  if (fails_alignment_check(cpu.state(), address, site.size)) return GuestStop::ac();
  if (site.read && site.write) {
    // In place where that is possible: LOCK must exclude the other vCPUs.
    if (u8* host = TRY(host_pointer(cpu, address, site.size, Access::kWrite))) {
      context->bounce_address = kInPlace;
      return host;
    }
  }
  u8* copy = copy_of(context, address.value);
  if (site.write) TRY(probe_write(cpu, address, site.size));
  if (site.read) TRY(read_linear(cpu, address, copy, site.size));
  if (split_lock(site, address)) std::memcpy(&context->bounce_before, copy, site.size);
  context->bounce_address = address.value;
  return copy;
}

Guest<void> commit(Cpu& cpu, Context* context, const SlowSite& site) {
  if (site.element) return commit_masked(cpu, context, site);
  if (context->bounce_address == kInPlace) return {};
  Gva address(context->bounce_address);
  const u8* copy = copy_of(context, address.value);
  if (!split_lock(site, address)) return write_linear(cpu, address, copy, site.size);
  bool written = TRY(replace_across_pages(cpu, address, &context->bounce_before, copy, site.size));
  return written ? Guest<void>{} : GuestStop::again();
}

// An instruction that used to go to a device may go to memory for once, or from now on.
void check_habit(Cpu& cpu, const Context& context, const SlowSite& site) {
  constexpr u32 kMostElsewhere = 64;
  const TlbTable& table = context.tlb[mmu_index(cpu.state())];
  const bool bus =
      context.bounce_address != kInPlace && table.find_bus(Gva(context.bounce_address), site.write);
  if (bus) return;
  if (++site.gone_elsewhere == kMostElsewhere) cpu.machine().code().do_by_tlb(site.instruction);
}

}  // namespace

extern "C" u8* anykvm_slow_access(Context* context, u64 address, const SlowSite* site) {
  Cpu& cpu = *context->cpu;
  ++context->counts->slow_accesses;
  context->slow_gpr = context->state.gpr;
  context->slow_flags = context->flags_image;
  if (site->x87_store) context->slow_x87.take(context->state);
  if (site->first) cpu.io_begin(site->rip);
  const Guest<u8*> opened = or_no_memory(cpu, [&] { return open(cpu, context, address, *site); });
  if (!opened.ok()) {
    context->stop = opened.error();
    context->leave = Leave::kStop;
    return nullptr;
  }
  if (site->on_bus) check_habit(cpu, *context, *site);
  if (!site->write && site->last) cpu.io_done();
  return opened.value();
}

extern "C" u64 anykvm_slow_commit(Context* context, const SlowSite* site) {
  Cpu& cpu = *context->cpu;
  const Guest<void> written = or_no_memory(cpu, [&] { return commit(cpu, context, *site); });
  if (!written.ok()) {
    // The client has to act first, or another vCPU was faster; the instruction starts over from the registers
    // that it began with.
    context->state.gpr = context->slow_gpr;
    context->flags_image = context->slow_flags;
    if (site->x87_store) context->slow_x87.put_back(context->state);
    context->stop = written.error();
    context->leave = Leave::kStop;
    return 0;
  }
  if (site->last) cpu.io_done();
  return 1;
}

}  // namespace anykvm::x86
