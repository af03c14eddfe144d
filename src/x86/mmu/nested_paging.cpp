#include "x86/mmu/nested_paging.h"

#include "x86/mmu/page_walk.h"

namespace anykvm::x86 {
namespace {

using namespace paging;

struct NestedAccess {
  const CpuState& state;
  const PhysicalMemory& memory;
  Gpa address;
  Access access;
  Stage stage;
  unsigned address_bits;
  Manner manner;

  // Such accesses count as a user's.
  GuestStop fault(u32 why) const {
    u32 code = kPfUser | why;
    if (access == Access::kWrite) code |= kPfWrite;
    const bool fetch_reported = (state.svm.host.efer & kEferNx) || (state.svm.host.cr4 & kCr4Smep);
    if (access == Access::kFetch && fetch_reported) code |= kPfFetch;
    return GuestStop::nested_page_fault(code, address, stage == Stage::kTables);
  }
};

template <class Mode>
Guest<NestedTranslation> walk_nested(const NestedAccess& a, u64 table) {
  for (;;) {
    Walk<Mode> walk(a.state, a.memory, a.address.value, a.address_bits, Dimension::kHost);
    const Outcome outcome = walk.run(table);
    if (outcome == Outcome::kStopped) return *walk.stop();
    if (outcome == Outcome::kNotPresent) return a.fault(0);
    if (outcome == Outcome::kReserved) return a.fault(kPfPresent | kPfReserved);
    const bool permitted = walk.user() && (a.access != Access::kWrite || walk.writable()) &&
                           (a.access != Access::kFetch || !walk.no_execute());
    if (!permitted) return a.fault(kPfPresent);
    if (a.manner == Manner::kAccess && !walk.set_accessed_and_dirty(a.access == Access::kWrite)) {
      if (walk.stop()) return *walk.stop();
      continue;
    }
    return NestedTranslation{walk.gpa(), walk.page_size(), walk.writable() && walk.dirty(),
                             !walk.no_execute()};
  }
}

Guest<NestedTranslation> walk_nested_pae(const NestedAccess& a, u64 table) {
  const u64 pdpte = TRY(read_entry(a.state, a.memory, Gpa(table + 8 * bits(a.address.value, 31, 30))));
  if (!(pdpte & kEntryPresent)) return a.fault(0);
  return walk_nested<Pae>(a, pdpte & kEntryAddress);
}

// The tables are of the form that the hypervisor's own paging has.
Guest<NestedTranslation> walk(const NestedAccess& a) {
  const VmcbSave& host = a.state.svm.host;
  const u64 cr3 = a.state.svm.control.nested_cr3, table = cr3 & kEntryAddress;
  if (host.efer & kEferLma)
    return host.cr4 & kCr4La57 ? walk_nested<Long<5>>(a, table) : walk_nested<Long<4>>(a, table);
  if (host.cr4 & kCr4Pae) return walk_nested_pae(a, cr3 & mask(31, 5));
  return walk_nested<Legacy>(a, table & low_bits(32));
}

}  // namespace

void NestedTlb::add(Gpa address, const NestedTranslation& found, bool in_tables) {
  const bool large = found.page_size >= u64{1} << kLargeShift;
  if (!large && !in_tables) return;
  const unsigned shift = large ? kLargeShift : 12;
  Entry& entry = large ? m_large[address.value >> shift & (kLargePages - 1)]
                       : m_tables[address.value >> shift & (kTables - 1)];
  entry.tag = (address.value >> shift) + 1;
  entry.found = found;
  entry.found.gpa = Gpa(found.gpa.value & ~low_bits(shift));
  m_empty = false;
}

void NestedTlb::flush() {
  if (m_empty) return;
  for (Entry& entry : m_large) entry.tag = 0;
  for (Entry& entry : m_tables) entry.tag = 0;
  m_empty = true;
}

Guest<NestedTranslation> translate_nested(const CpuState& state, const PhysicalMemory& memory, Gpa address,
                                          Access access, Stage stage, unsigned physical_address_bits,
                                          Manner manner) {
  NestedTlb* const tlb = manner == Manner::kAccess ? state.nested_tlb : nullptr;
  const bool in_tables = stage == Stage::kTables;
  if (const NestedTranslation* known = tlb ? tlb->find(address, access, in_tables) : nullptr) {
    NestedTranslation found = *known;
    const u64 within = found.page_size >= u64{1} << 21 ? low_bits(21) : low_bits(12);
    found.gpa = Gpa(found.gpa.value | (address.value & within));
    return found;
  }
  const NestedTranslation found =
      TRY(walk({state, memory, address, access, stage, physical_address_bits, manner}));
  if (tlb) tlb->add(address, found, in_tables);
  return found;
}

}  // namespace anykvm::x86
