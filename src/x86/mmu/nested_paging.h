#pragma once
// Nested paging (APM 2 15.25): the way from a nested guest's physical addresses to its hypervisor's, which
// are those of memory. Owner: nobody; functions over CPU state and guest memory. NestedTlb: Cpu. Only the
// vCPU's thread.

#include <array>

#include "x86/fault.h"
#include "x86/mmu/paging.h"

namespace anykvm::x86 {

struct NestedTranslation {
  Gpa gpa{};
  u64 page_size = 0;
  bool writable = false;  // also for the page's D flag
  bool executable = false;
};

// What nested walks found lately, so that a walk through the guest's tables need not walk the nested ones for
// each of its steps: pages that hold tables of the guest's, and large pages of any kind. Flushed with the
// TLB.
class NestedTlb {
 public:
  // Null: not known, or not known to permit this.
  const NestedTranslation* find(Gpa address, Access access, bool in_tables) const {
    const Entry& large = m_large[address.value >> kLargeShift & (kLargePages - 1)];
    if (large.tag == (address.value >> kLargeShift) + 1 && permits(large.found, access)) return &large.found;
    if (!in_tables) return nullptr;
    const Entry& entry = m_tables[address.value >> 12 & (kTables - 1)];
    return entry.tag == (address.value >> 12) + 1 && permits(entry.found, access) ? &entry.found : nullptr;
  }
  // `found` is of the byte at `address`.
  void add(Gpa address, const NestedTranslation& found, bool in_tables);
  void flush();

 private:
  static constexpr unsigned kLargeShift = 21, kLargePages = 256, kTables = 256;

  struct Entry {
    u64 tag = 0;              // number of the page + 1
    NestedTranslation found;  // of its first byte
  };
  static bool permits(const NestedTranslation& found, Access access) {
    return access == Access::kWrite ? found.writable : access != Access::kFetch || found.executable;
  }

  std::array<Entry, kLargePages> m_large{};
  std::array<Entry, kTables> m_tables{};
  bool m_empty = true;
};

// Walking for a debugger leaves A and D flags alone.
enum class Manner : u8 { kAccess, kLook };

// In which an access of the nested guest's CPU differs from one of the guest itself.
enum class Stage : u8 {
  kFinal,   // to what the guest asked for
  kTables,  // to its page tables on the way there
};

// Sets A and D flags as the CPU would. Where the hypervisor's tables do not permit the access:
// GuestStop::Kind::kNestedPageFault. Compiled without vector instructions.
Guest<NestedTranslation> translate_nested(const CpuState& state, const PhysicalMemory& memory, Gpa address,
                                          Access access, Stage stage, unsigned physical_address_bits,
                                          Manner manner = Manner::kAccess);

}  // namespace anykvm::x86
