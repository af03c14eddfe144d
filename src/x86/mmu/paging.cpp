#include "x86/mmu/paging.h"

#include <algorithm>
#include <optional>

#include "base/guarded_memory.h"
#include "x86/mmu/physical_memory.h"

namespace anykvm::x86 {

Gpa as_seen(const CpuState& state, const PhysicalMemory& memory, Gpa address) {
  return state.smm.active ? memory.in_management_space(address) : address;
}

namespace {

// Paging-structure entries, SDM 3A tables 4-4 to 4-20:
//   63 XD | 62:59 key | 51:12 address | 8 G (leaf) | 7 PS (PAT in a 4 KiB leaf) | 6 D | 5 A | 2 U/S | 1 R/W |
//   0 P
constexpr u64 kEntryPresent = bit(0), kEntryWrite = bit(1), kEntryUser = bit(2), kEntryAccessed = bit(5);
constexpr u64 kEntryDirty = bit(6), kEntryLarge = bit(7), kEntryGlobal = bit(8), kEntryNoExecute = bit(63);
constexpr u64 kEntryAddress = low_bits(52) & ~low_bits(12);

// Bits `first` to `last` set.
constexpr u64 mask(unsigned last, unsigned first) { return low_bits(last + 1) & ~low_bits(first); }

// The control bits by which entries are read.
struct TableRules {
  bool page_size_extension, no_execute, global;

  static TableRules of(u64 cr4, u64 efer) {
    return {(cr4 & kCr4Pse) != 0, (efer & kEferNx) != 0, (cr4 & kCr4Pge) != 0};
  }
};

// What the tables of one paging mode look like. Level 1 is the page table; the walk starts at level kLevels.
struct Legacy {
  using Entry = u32;
  static constexpr unsigned kLevels = 2, kIndexBits = 10;
  static constexpr bool kProtectionKeys = false;
  static bool large_allowed(const TableRules& rules, unsigned level) {
    return level == 2 && rules.page_size_extension;
  }
  static u64 reserved(const TableRules&, unsigned) { return 0; }
  // PSE-36: bits 20:13 are address bits 39:32, those above the physical address width are reserved (SDM 3A
  // table 4-4).
  static u64 reserved_in_large(unsigned, unsigned address_bits) {
    return mask(21, 13 + std::clamp(address_bits, 32u, 40u) - 32);
  }
  static u64 large_address(u64 entry, unsigned) { return (entry & mask(31, 22)) | bits(entry, 20, 13) << 32; }
};

struct Pae {
  using Entry = u64;
  static constexpr unsigned kLevels = 2, kIndexBits = 9;
  static constexpr bool kProtectionKeys = false;
  static bool large_allowed(const TableRules&, unsigned level) { return level == 2; }
  static u64 reserved(const TableRules& rules, unsigned address_bits) {
    return mask(62, address_bits) | (rules.no_execute ? 0 : kEntryNoExecute);
  }
  static u64 reserved_in_large(unsigned shift, unsigned) { return mask(shift - 1, 13); }
  static u64 large_address(u64 entry, unsigned shift) { return entry & kEntryAddress & ~low_bits(shift); }
};

template <unsigned levels>
struct Long {
  using Entry = u64;
  static constexpr unsigned kLevels = levels, kIndexBits = 9;
  static constexpr bool kProtectionKeys = true;
  static bool large_allowed(const TableRules&, unsigned level) { return level == 2 || level == 3; }
  // Bits 62:52 are ignored, or the protection key.
  static u64 reserved(const TableRules& rules, unsigned address_bits) {
    return (low_bits(52) & ~low_bits(address_bits)) | (rules.no_execute ? 0 : kEntryNoExecute);
  }
  static u64 reserved_in_large(unsigned shift, unsigned address_bits) {
    return Pae::reserved_in_large(shift, address_bits);
  }
  static u64 large_address(u64 entry, unsigned shift) { return Pae::large_address(entry, shift); }
};

enum class Outcome : u8 { kFound, kNotPresent, kReserved, kStopped };

// Whose tables are walked, and so what their entries' addresses are.
enum class Dimension : u8 {
  kOnly,   // nobody nests: addresses are physical
  kGuest,  // a nested guest's: physical to it, so each goes through its hypervisor's tables
  kHost,   // those
};

// Walking for a debugger leaves A and D flags alone.
enum class Manner : u8 { kAccess, kLook };

struct NestedTranslation {
  Gpa gpa{};
  u64 page_size = 0;
  bool writable = false, executable = false;
};

Guest<NestedTranslation> translate_nested(const CpuState& state, const PhysicalMemory& memory, Gpa address,
                                          Access access, bool in_tables, unsigned address_bits,
                                          Manner manner);

// One descent through the tables. Everything it learned is in its members afterwards.
template <class Mode>
class Walk {
 public:
  using Entry = typename Mode::Entry;

  Walk(const CpuState& state, const PhysicalMemory& memory, u64 address, unsigned address_bits,
       Dimension dimension, Manner manner = Manner::kAccess)
      : m_state(state),
        m_memory(memory),
        m_rules(dimension == Dimension::kHost ? TableRules::of(state.svm.host.cr4, state.svm.host.efer)
                                              : TableRules::of(state.cr4, state.efer)),
        m_dimension(dimension),
        m_manner(manner),
        m_address(address),
        m_address_bits(address_bits) {}

  Outcome run(u64 table) {
    u64 reserved = Mode::reserved(m_rules, m_address_bits);
    for (unsigned level = Mode::kLevels;; --level) {
      unsigned shift = 12 + (level - 1) * Mode::kIndexBits;
      u64 index = (m_address >> shift) & low_bits(Mode::kIndexBits);
      Used& used = m_used[m_count];
      if (!read(Gpa(table + index * sizeof(Entry)), used))
        return m_stop ? Outcome::kStopped : Outcome::kNotPresent;
      u64 entry = used.value;
      if (!(entry & kEntryPresent)) return Outcome::kNotPresent;

      bool large = level > 1 && (entry & kEntryLarge) && Mode::large_allowed(m_rules, level);
      u64 forbidden = reserved;
      if (large) forbidden |= Mode::reserved_in_large(shift, m_address_bits);
      // PS is reserved where no page of that size exists (SDM 3A tables 4-14, 4-15); bit 8 is ignored (SEEDS
      // X5).
      if (level >= 4) forbidden |= kEntryLarge;
      if (m_dimension == Dimension::kHost && level > 2 && !large) forbidden |= kEntryGlobal;  // APM 2 figure 5-20
      if (entry & forbidden) return Outcome::kReserved;

      ++m_count;
      m_all_set &= entry;
      m_any_set |= entry;
      if (level == 1 || large) {
        m_leaf = entry;
        m_page_size = u64{1} << shift;
        u64 base = large ? Mode::large_address(entry, shift) : entry & kEntryAddress;
        m_gpa = Gpa(base | (m_address & (m_page_size - 1)));
        return Outcome::kFound;
      }
      table = entry & kEntryAddress;
    }
  }

  // Sets A in every entry used, and D in the leaf for a write (SDM 3A 4.8). False: an entry changed since it
  // was read, so the translation may be out of date; walk again.
  bool set_accessed_and_dirty(bool write) {
    u64 leaf_bits = kEntryAccessed | (write ? kEntryDirty : 0);
    if ((m_all_set & kEntryAccessed) && (m_leaf & leaf_bits) == leaf_bits) return true;
    for (unsigned i = 0; i < m_count; ++i) {
      if (!set_bits(m_used[i], i + 1 == m_count ? leaf_bits : kEntryAccessed)) return false;
    }
    m_leaf = m_used[m_count - 1].value;
    return true;
  }

  // The client has taken away memory that holds a table, or a hypervisor has not mapped it.
  const std::optional<GuestStop>& stop() const { return m_stop; }
  bool user() const { return m_all_set & kEntryUser; }
  bool writable() const { return m_all_set & kEntryWrite; }
  // Bit 63 is reserved, so never here, while EFER.NXE is clear.
  bool no_execute() const { return m_any_set & kEntryNoExecute; }
  bool dirty() const { return m_leaf & kEntryDirty; }
  bool global() const { return (m_leaf & kEntryGlobal) && m_rules.global; }
  unsigned protection_key() const { return static_cast<unsigned>(bits(m_leaf, 62, 59)); }
  u64 page_size() const { return m_page_size; }
  Gpa gpa() const { return m_gpa; }

 private:
  struct Used {
    Entry* host;
    Entry value;
    Gpa address;
    const MemorySlot* slot;
  };

  // False where the table is not in RAM, or no longer.
  bool read(Gpa address, Used& used) {
    if (m_dimension == Dimension::kGuest) {
      auto found =
          translate_nested(m_state, m_memory, address, Access::kWrite, true, m_address_bits, m_manner);
      if (!found.ok()) return m_stop = found.error(), false;
      address = found.value().gpa;
    }
    address = as_seen(m_state, m_memory, address);
    if (!m_slot || !m_slot->contains(address)) m_slot = m_memory.find(address);
    if (!m_slot) return false;
    used.slot = m_slot;
    used.address = address;
    // SAFETY: `address` is a multiple of the entry's size and slots are whole pages, so the entry is inside
    // the slot.
    used.host = reinterpret_cast<Entry*>(m_slot->host + (address - m_slot->base));
    if (guarded_copy(&used.value, used.host, sizeof(Entry))) return true;
    m_stop = GuestStop::unmapped();
    return false;
  }

  // Tables in read-only memory keep their flags as they are.
  bool set_bits(Used& used, u64 wanted) {
    Entry updated = used.value | static_cast<Entry>(wanted);
    if (updated == used.value || used.slot->read_only) return true;
    u64 expected = used.value;
    const Guarded done = guarded_compare_exchange(used.host, &expected, updated, sizeof(Entry));
    if (done == Guarded::kFault) m_stop = GuestStop::unmapped();
    if (done != Guarded::kYes) return false;
    used.slot->mark_dirty(used.address);
    used.value = updated;
    return true;
  }

  const CpuState& m_state;
  const PhysicalMemory& m_memory;
  const MemorySlot* m_slot = nullptr;
  const TableRules m_rules;
  const Dimension m_dimension;
  const Manner m_manner;
  u64 m_address;
  unsigned m_address_bits;
  unsigned m_count = 0;
  std::optional<GuestStop> m_stop;
  u64 m_all_set = ~u64{0}, m_any_set = 0;
  u64 m_leaf = 0, m_page_size = 0;
  Gpa m_gpa{};
  Used m_used[Mode::kLevels];
};

// What one page allows to one kind of access, SDM 3A 4.6.
struct Rights {
  bool read, write, fetch;
  bool key_denies_read = false, key_denies_write = false;

  bool allows(Access access) const {
    switch (access) {
      case Access::kRead:
        return read && !key_denies_read;
      case Access::kWrite:
        return write && !key_denies_write;
      case Access::kFetch:
        return fetch;
    }
    return false;
  }
  bool key_denies(Access access) const {
    return (access == Access::kRead && key_denies_read) || (access == Access::kWrite && key_denies_write);
  }
};

bool user_mode_access(const CpuState& state, Privilege privilege) {
  return state.cpl == 3 && privilege == Privilege::kCurrent;
}

template <class Mode>
Rights rights_of(const Walk<Mode>& walk, const CpuState& state, Privilege privilege) {
  bool user_access = user_mode_access(state, privilege);
  bool write_protect = user_access || (state.cr0 & kCr0Wp);
  Rights rights{};
  if (user_access) {
    rights.read = walk.user();
    rights.fetch = walk.user();
  } else {
    // RFLAGS.AC lifts SMAP for explicit accesses only.
    bool access_check_off = privilege == Privilege::kCurrent && (state.rflags & kFlagAc);
    rights.read = !(walk.user() && (state.cr4 & kCr4Smap) && !access_check_off);
    rights.fetch = !(walk.user() && (state.cr4 & kCr4Smep));
  }
  rights.write = rights.read && (walk.writable() || !write_protect);
  rights.fetch = rights.fetch && !walk.no_execute();

  // Protection keys guard user pages against data accesses, the supervisor's too (SDM 3A 4.6.2).
  if (Mode::kProtectionKeys && (state.cr4 & kCr4Pke) && walk.user()) {
    u32 key_bits = state.pkru >> (2 * walk.protection_key());
    rights.key_denies_read = key_bits & 1;
    rights.key_denies_write = (key_bits & 1) || ((key_bits & 2) && write_protect);
  }
  return rights;
}

constexpr u32 kReservedCode = kPfPresent | kPfReserved;

// The bits of the error code that do not depend on why (SDM 3A 4.7).
u32 error_code(const CpuState& state, Access access, Privilege privilege) {
  u32 code = user_mode_access(state, privilege) ? u32{kPfUser} : 0;
  if (access == Access::kWrite) code |= kPfWrite;
  bool fetch_reported = (state.cr4 & kCr4Smep) || ((state.cr4 & kCr4Pae) && (state.efer & kEferNx));
  if (access == Access::kFetch && fetch_reported) code |= kPfFetch;
  return code;
}

// --- Nested paging: from a nested guest's physical addresses to its hypervisor's (APM 2 15.25) ---

Dimension first_dimension(const CpuState& state) {
  return state.svm.nested_paging() ? Dimension::kGuest : Dimension::kOnly;
}

// Its accesses count as a user's, and as its own paging's writes, since that may set flags (APM 2 15.25.5).
u32 nested_error_code(const CpuState& state, Access access) {
  u32 code = kPfUser;
  if (access == Access::kWrite) code |= kPfWrite;
  const bool fetch_reported = (state.svm.host.efer & kEferNx) || (state.svm.host.cr4 & kCr4Smep);
  if (access == Access::kFetch && fetch_reported) code |= kPfFetch;
  return code;
}

template <class Mode>
Guest<NestedTranslation> nested_with(const CpuState& state, const PhysicalMemory& memory, Gpa address,
                                     Access access, bool in_tables, unsigned address_bits, Manner manner,
                                     u64 table) {
  for (;;) {
    Walk<Mode> walk(state, memory, address.value, address_bits, Dimension::kHost);
    const Outcome outcome = walk.run(table);
    if (outcome == Outcome::kStopped) return *walk.stop();
    const u32 code = nested_error_code(state, access);
    if (outcome == Outcome::kNotPresent) return GuestStop::nested_page_fault(code, address, in_tables);
    if (outcome == Outcome::kReserved)
      return GuestStop::nested_page_fault(code | kReservedCode, address, in_tables);
    const bool permitted = walk.user() && (access != Access::kWrite || walk.writable()) &&
                           (access != Access::kFetch || !walk.no_execute());
    if (!permitted) return GuestStop::nested_page_fault(code | kPfPresent, address, in_tables);
    if (manner == Manner::kAccess && !walk.set_accessed_and_dirty(access == Access::kWrite)) {
      if (walk.stop()) return *walk.stop();
      continue;
    }
    return NestedTranslation{walk.gpa(), walk.page_size(), walk.writable() && walk.dirty(),
                             !walk.no_execute()};
  }
}

Guest<u64> read_entry(const CpuState& state, const PhysicalMemory& memory, Gpa address);

Guest<NestedTranslation> nested_with_pae(const CpuState& state, const PhysicalMemory& memory, Gpa address,
                                         Access access, bool in_tables, unsigned address_bits, Manner manner,
                                         u64 table) {
  const u64 pdpte =
      TRY(read_entry(state, memory, Gpa((table & mask(31, 5)) + 8 * bits(address.value, 31, 30))));
  const u32 code = nested_error_code(state, access);
  if (!(pdpte & kEntryPresent)) return GuestStop::nested_page_fault(code, address, in_tables);
  return nested_with<Pae>(state, memory, address, access, in_tables, address_bits, manner,
                          pdpte & kEntryAddress);
}

// The tables are of the form that the hypervisor's own paging has.
Guest<NestedTranslation> translate_nested(const CpuState& state, const PhysicalMemory& memory, Gpa address,
                                          Access access, bool in_tables, unsigned address_bits,
                                          Manner manner) {
  const VmcbSave& host = state.svm.host;
  const u64 table = state.svm.control.nested_cr3 & kEntryAddress;
  if (host.efer & kEferLma) {
    const auto walk = host.cr4 & kCr4La57 ? nested_with<Long<5>> : nested_with<Long<4>>;
    return walk(state, memory, address, access, in_tables, address_bits, manner, table);
  }
  const auto walk = host.cr4 & kCr4Pae ? nested_with_pae : nested_with<Legacy>;
  return walk(state, memory, address, access, in_tables, address_bits, manner,
              state.svm.control.nested_cr3 & low_bits(32) & ~low_bits(5));
}

// What the guest's own tables gave, or its linear address without paging, on its way to memory.
Guest<Translation> to_memory(const CpuState& state, const PhysicalMemory& memory, Translation guest,
                             Access access, unsigned address_bits) {
  if (state.svm.nested_paging()) {
    const NestedTranslation nested =
        TRY(translate_nested(state, memory, guest.gpa, access, false, address_bits, Manner::kAccess));
    guest.gpa = nested.gpa;
    guest.page_size = std::min(guest.page_size, nested.page_size);
    guest.writable = guest.writable && nested.writable;
    guest.executable = guest.executable && nested.executable;
  }
  guest.gpa = as_seen(state, memory, guest.gpa);
  return guest;
}

template <class Mode>
Guest<Translation> translate_with(const CpuState& state, const PhysicalMemory& memory, Gva address,
                                  Access access, Privilege privilege, unsigned address_bits, u64 table) {
  for (;;) {
    Walk<Mode> walk(state, memory, address.value, address_bits, first_dimension(state));
    Outcome outcome = walk.run(table);
    if (outcome == Outcome::kStopped) return *walk.stop();
    if (outcome != Outcome::kFound) {
      u32 why = outcome == Outcome::kReserved ? kReservedCode : 0;
      return GuestStop::pf(error_code(state, access, privilege) | why, address);
    }
    Rights rights = rights_of(walk, state, privilege);
    if (!rights.allows(access)) {
      u32 why = rights.key_denies(access) ? kPfPresent | kPfProtectionKey : u32{kPfPresent};
      return GuestStop::pf(error_code(state, access, privilege) | why, address);
    }
    if (!walk.set_accessed_and_dirty(access == Access::kWrite)) {
      if (walk.stop()) return *walk.stop();
      continue;
    }
    const Translation found{.gpa = walk.gpa(),
                            .page_size = walk.page_size(),
                            .writable = rights.allows(Access::kWrite) && walk.dirty(),
                            .user = walk.user(),
                            .global = walk.global(),
                            .executable = rights.allows(Access::kFetch)};
    return to_memory(state, memory, found, access, address_bits);
  }
}

// --- PAE's top level, SDM 3A 4.4.1 ---

Gpa pdpte_address(u64 cr3, unsigned index) { return Gpa((cr3 & mask(31, 5)) + index * 8); }

u64 pdpte_reserved(unsigned address_bits) { return mask(2, 1) | mask(8, 5) | ~low_bits(address_bits); }

// 0, which is not present, where the table is not in RAM.
Guest<u64> read_entry(const CpuState& state, const PhysicalMemory& memory, Gpa address) {
  address = as_seen(state, memory, address);
  const MemorySlot* slot = memory.find(address);
  if (!slot) return u64{0};
  // SAFETY: 8-byte aligned within a slot of whole pages.
  u64 entry = 0;
  if (!guarded_copy(&entry, slot->host + (address - slot->base), sizeof entry)) return GuestStop::unmapped();
  return entry;
}

Guest<u64> read_pdpte(const CpuState& state, const PhysicalMemory& memory, u64 cr3, unsigned index) {
  Gpa address = pdpte_address(cr3, index);
  if (state.svm.nested_paging())
    address = TRY(translate_nested(state, memory, address, Access::kWrite, true, 52, Manner::kAccess)).gpa;
  return read_entry(state, memory, address);
}

Guest<u64> current_pdpte(const CpuState& state, const PhysicalMemory& memory, Gva address) {
  auto index = static_cast<unsigned>(bits(address.value, 31, 30));
  if (state.pdptes_valid) return state.pdptes[index];
  return read_pdpte(state, memory, state.cr3, index);
}

Guest<Translation> translate_pae(const CpuState& state, const PhysicalMemory& memory, Gva address,
                                 Access access, Privilege privilege, unsigned address_bits) {
  u64 pdpte = TRY(current_pdpte(state, memory, address));
  u32 code = error_code(state, access, privilege);
  if (!(pdpte & kEntryPresent)) return GuestStop::pf(code, address);
  if (pdpte & pdpte_reserved(address_bits)) return GuestStop::pf(code | kReservedCode, address);
  return translate_with<Pae>(state, memory, address, access, privilege, address_bits, pdpte & kEntryAddress);
}

Guest<Translation> translate_without_paging(const CpuState& state, const PhysicalMemory& memory, Gva address,
                                            Access access, unsigned address_bits) {
  const Translation found{.gpa = Gpa(address.value & low_bits(32)),
                          .page_size = kPageSize,
                          .writable = true,
                          .user = true,
                          .global = false,
                          .executable = true};
  return to_memory(state, memory, found, access, address_bits);
}

DebugTranslation debug_to_memory(const CpuState& state, const PhysicalMemory& memory,
                                 DebugTranslation guest) {
  if (!state.svm.nested_paging()) return guest;
  const auto nested = translate_nested(state, memory, guest.gpa, Access::kRead, false, 52, Manner::kLook);
  if (!nested.ok()) return {};
  return {true, guest.writable && nested.value().writable, guest.user, nested.value().gpa};
}

template <class Mode>
DebugTranslation debug_with(const CpuState& state, const PhysicalMemory& memory, Gva address, u64 table) {
  Walk<Mode> walk(state, memory, address.value, 52, first_dimension(state), Manner::kLook);
  if (walk.run(table) != Outcome::kFound) return {};
  return debug_to_memory(state, memory, {true, walk.writable(), walk.user(), walk.gpa()});
}

DebugTranslation debug_pae(const CpuState& state, const PhysicalMemory& memory, Gva address) {
  auto pdpte = current_pdpte(state, memory, address);
  if (!pdpte.ok() || !(pdpte.value() & kEntryPresent)) return {};
  return debug_with<Pae>(state, memory, address, pdpte.value() & kEntryAddress);
}

}  // namespace

// flatten: small inline functions of headers exist in other translation units too, compiled with vector
// instructions, and the linker may keep those. Inlined they cannot be mixed up.
[[gnu::flatten]] Guest<Translation> translate(const CpuState& state, const PhysicalMemory& memory,
                                              Gva address, Access access, Privilege privilege,
                                              unsigned physical_address_bits) {
  u64 table = state.cr3 & kEntryAddress;
  switch (paging_mode(state)) {
    case PagingMode::kNone:
      break;
    case PagingMode::k32Bit:
      return translate_with<Legacy>(state, memory, address, access, privilege, physical_address_bits,
                                    table & low_bits(32));
    case PagingMode::kPae:
      return translate_pae(state, memory, address, access, privilege, physical_address_bits);
    case PagingMode::k4Level:
      return translate_with<Long<4>>(state, memory, address, access, privilege, physical_address_bits, table);
    case PagingMode::k5Level:
      return translate_with<Long<5>>(state, memory, address, access, privilege, physical_address_bits, table);
  }
  return translate_without_paging(state, memory, address, access, physical_address_bits);
}

Guest<void> load_pdptes(CpuState& state, const PhysicalMemory& memory, u64 cr3,
                        unsigned physical_address_bits) {
  std::array<u64, 4> loaded{};
  for (unsigned i = 0; i < loaded.size(); ++i) {
    loaded[i] = TRY(read_pdpte(state, memory, cr3, i));
    bool reserved = loaded[i] & pdpte_reserved(physical_address_bits);
    if ((loaded[i] & kEntryPresent) && reserved) return GuestStop::gp(0);
  }
  state.pdptes = loaded;
  state.pdptes_valid = true;
  return {};
}

std::array<u64, 4> pdptes_in_use(const CpuState& state, const PhysicalMemory& memory) {
  if (state.pdptes_valid) return state.pdptes;
  std::array<u64, 4> in_memory{};
  for (unsigned i = 0; i < in_memory.size(); ++i) {
    const Guest<u64> entry = read_pdpte(state, memory, state.cr3, i);
    if (entry.ok()) in_memory[i] = entry.value();
  }
  return in_memory;
}

DebugTranslation translate_for_debug(const CpuState& state, const PhysicalMemory& memory, Gva address) {
  u64 table = state.cr3 & kEntryAddress;
  switch (paging_mode(state)) {
    case PagingMode::kNone:
      break;
    case PagingMode::k32Bit:
      return debug_with<Legacy>(state, memory, address, table & low_bits(32));
    case PagingMode::kPae:
      return debug_pae(state, memory, address);
    case PagingMode::k4Level:
      return state.canonical(address.value) ? debug_with<Long<4>>(state, memory, address, table)
                                            : DebugTranslation{};
    case PagingMode::k5Level:
      return state.canonical(address.value) ? debug_with<Long<5>>(state, memory, address, table)
                                            : DebugTranslation{};
  }
  return debug_to_memory(state, memory, {true, true, true, Gpa(address.value & low_bits(32))});
}

}  // namespace anykvm::x86
