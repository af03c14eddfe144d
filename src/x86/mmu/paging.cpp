#include "x86/mmu/paging.h"

#include <algorithm>

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

// What the tables of one paging mode look like. Level 1 is the page table; the walk starts at level kLevels.
struct Legacy {
  using Entry = u32;
  static constexpr unsigned kLevels = 2, kIndexBits = 10;
  static constexpr bool kProtectionKeys = false;
  static bool large_allowed(const CpuState& state, unsigned level) {
    return level == 2 && (state.cr4 & kCr4Pse);
  }
  static u64 reserved(const CpuState&, unsigned) { return 0; }
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
  static bool large_allowed(const CpuState&, unsigned level) { return level == 2; }
  static u64 reserved(const CpuState& state, unsigned address_bits) {
    return mask(62, address_bits) | (state.efer & kEferNx ? 0 : kEntryNoExecute);
  }
  static u64 reserved_in_large(unsigned shift, unsigned) { return mask(shift - 1, 13); }
  static u64 large_address(u64 entry, unsigned shift) { return entry & kEntryAddress & ~low_bits(shift); }
};

template <unsigned levels>
struct Long {
  using Entry = u64;
  static constexpr unsigned kLevels = levels, kIndexBits = 9;
  static constexpr bool kProtectionKeys = true;
  static bool large_allowed(const CpuState&, unsigned level) { return level == 2 || level == 3; }
  // Bits 62:52 are ignored, or the protection key.
  static u64 reserved(const CpuState& state, unsigned address_bits) {
    return (low_bits(52) & ~low_bits(address_bits)) | (state.efer & kEferNx ? 0 : kEntryNoExecute);
  }
  static u64 reserved_in_large(unsigned shift, unsigned address_bits) {
    return Pae::reserved_in_large(shift, address_bits);
  }
  static u64 large_address(u64 entry, unsigned shift) { return Pae::large_address(entry, shift); }
};

enum class Outcome : u8 { kFound, kNotPresent, kReserved, kUnmapped };

// One descent through the tables. Everything it learned is in its members afterwards.
template <class Mode>
class Walk {
 public:
  using Entry = typename Mode::Entry;

  Walk(const CpuState& state, const PhysicalMemory& memory, Gva address, unsigned address_bits)
      : m_state(state), m_memory(memory), m_address(address.value), m_address_bits(address_bits) {}

  Outcome run(u64 table) {
    u64 reserved = Mode::reserved(m_state, m_address_bits);
    for (unsigned level = Mode::kLevels;; --level) {
      unsigned shift = 12 + (level - 1) * Mode::kIndexBits;
      u64 index = (m_address >> shift) & low_bits(Mode::kIndexBits);
      Used& used = m_used[m_count];
      if (!read(Gpa(table + index * sizeof(Entry)), used))
        return m_unmapped ? Outcome::kUnmapped : Outcome::kNotPresent;
      u64 entry = used.value;
      if (!(entry & kEntryPresent)) return Outcome::kNotPresent;

      bool large = level > 1 && (entry & kEntryLarge) && Mode::large_allowed(m_state, level);
      u64 forbidden = reserved;
      if (large) forbidden |= Mode::reserved_in_large(shift, m_address_bits);
      // PS is reserved where no page of that size exists (SDM 3A tables 4-14, 4-15); bit 8 is ignored (SEEDS
      // X5).
      if (level >= 4) forbidden |= kEntryLarge;
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

  // The client has taken away memory that holds a table.
  bool unmapped() const { return m_unmapped; }
  bool user() const { return m_all_set & kEntryUser; }
  bool writable() const { return m_all_set & kEntryWrite; }
  // Bit 63 is reserved, so never here, while EFER.NXE is clear.
  bool no_execute() const { return m_any_set & kEntryNoExecute; }
  bool dirty() const { return m_leaf & kEntryDirty; }
  bool global() const { return (m_leaf & kEntryGlobal) && (m_state.cr4 & kCr4Pge); }
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
    address = as_seen(m_state, m_memory, address);
    if (!m_slot || !m_slot->contains(address)) m_slot = m_memory.find(address);
    if (!m_slot) return false;
    used.slot = m_slot;
    used.address = address;
    // SAFETY: `address` is a multiple of the entry's size and slots are whole pages, so the entry is inside
    // the slot.
    used.host = reinterpret_cast<Entry*>(m_slot->host + (address - m_slot->base));
    m_unmapped = !guarded_copy(&used.value, used.host, sizeof(Entry));
    return !m_unmapped;
  }

  // Tables in read-only memory keep their flags as they are.
  bool set_bits(Used& used, u64 wanted) {
    Entry updated = used.value | static_cast<Entry>(wanted);
    if (updated == used.value || used.slot->read_only) return true;
    u64 expected = used.value;
    const Guarded done = guarded_compare_exchange(used.host, &expected, updated, sizeof(Entry));
    m_unmapped = done == Guarded::kFault;
    if (done != Guarded::kYes) return false;
    used.slot->mark_dirty(used.address);
    used.value = updated;
    return true;
  }

  const CpuState& m_state;
  const PhysicalMemory& m_memory;
  const MemorySlot* m_slot = nullptr;
  u64 m_address;
  unsigned m_address_bits;
  unsigned m_count = 0;
  bool m_unmapped = false;
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

template <class Mode>
Guest<Translation> translate_with(const CpuState& state, const PhysicalMemory& memory, Gva address,
                                  Access access, Privilege privilege, unsigned address_bits, u64 table) {
  for (;;) {
    Walk<Mode> walk(state, memory, address, address_bits);
    Outcome outcome = walk.run(table);
    if (outcome == Outcome::kUnmapped) return GuestStop::unmapped();
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
      if (walk.unmapped()) return GuestStop::unmapped();
      continue;
    }
    return Translation{.gpa = as_seen(state, memory, walk.gpa()),
                       .page_size = walk.page_size(),
                       .writable = rights.allows(Access::kWrite) && walk.dirty(),
                       .user = walk.user(),
                       .global = walk.global(),
                       .executable = rights.allows(Access::kFetch)};
  }
}

// --- PAE's top level, SDM 3A 4.4.1 ---

Gpa pdpte_address(u64 cr3, unsigned index) { return Gpa((cr3 & mask(31, 5)) + index * 8); }

u64 pdpte_reserved(unsigned address_bits) { return mask(2, 1) | mask(8, 5) | ~low_bits(address_bits); }

// 0, which is not present, where the table is not in RAM.
Guest<u64> read_pdpte(const CpuState& state, const PhysicalMemory& memory, u64 cr3, unsigned index) {
  Gpa address = as_seen(state, memory, pdpte_address(cr3, index));
  const MemorySlot* slot = memory.find(address);
  if (!slot) return u64{0};
  // SAFETY: 8-byte aligned within a slot of whole pages.
  u64 entry = 0;
  if (!guarded_copy(&entry, slot->host + (address - slot->base), sizeof entry)) return GuestStop::unmapped();
  return entry;
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

Translation translate_without_paging(const CpuState& state, const PhysicalMemory& memory, Gva address) {
  return Translation{.gpa = as_seen(state, memory, Gpa(address.value & low_bits(32))),
                     .page_size = kPageSize,
                     .writable = true,
                     .user = true,
                     .global = false,
                     .executable = true};
}

template <class Mode>
DebugTranslation debug_with(const CpuState& state, const PhysicalMemory& memory, Gva address, u64 table) {
  Walk<Mode> walk(state, memory, address, 52);
  if (walk.run(table) != Outcome::kFound) return {};
  return {true, walk.writable(), walk.user(), walk.gpa()};
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
  return translate_without_paging(state, memory, address);
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
  return {true, true, true, Gpa(address.value & low_bits(32))};
}

}  // namespace anykvm::x86
