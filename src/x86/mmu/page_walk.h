#pragma once
// One descent through paging structures, for the walks of guests, of nested guests and of their hypervisors'
// nested tables. Owner: nobody; a Walk lives as long as one translation. Only the vCPU's thread. Compiled
// without vector instructions.

#include <algorithm>
#include <optional>

#include "base/guarded_memory.h"
#include "x86/mmu/nested_paging.h"
#include "x86/mmu/paging.h"
#include "x86/mmu/physical_memory.h"

namespace anykvm::x86::paging {

// Paging-structure entries, SDM 3A tables 4-4 to 4-20:
//   63 XD | 62:59 key | 51:12 address | 8 G (leaf) | 7 PS (PAT in a 4 KiB leaf) | 6 D | 5 A | 2 U/S | 1 R/W |
//   0 P
inline constexpr u64 kEntryPresent = bit(0), kEntryWrite = bit(1), kEntryUser = bit(2),
                     kEntryAccessed = bit(5);
inline constexpr u64 kEntryDirty = bit(6), kEntryLarge = bit(7), kEntryGlobal = bit(8),
                     kEntryNoExecute = bit(63);
inline constexpr u64 kEntryAddress = low_bits(52) & ~low_bits(12);

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
      if (m_dimension == Dimension::kHost && level > 2 && !large)
        forbidden |= kEntryGlobal;  // APM 2 figure 5-20
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
      auto found = translate_nested(m_state, m_memory, address, Access::kWrite, Stage::kTables,
                                    m_address_bits, m_manner);
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

// 0, which is not present, where the table is not in RAM.
inline Guest<u64> read_entry(const CpuState& state, const PhysicalMemory& memory, Gpa address) {
  address = as_seen(state, memory, address);
  const MemorySlot* slot = memory.find(address);
  if (!slot) return u64{0};
  // SAFETY: 8-byte aligned within a slot of whole pages.
  u64 entry = 0;
  if (!guarded_copy(&entry, slot->host + (address - slot->base), sizeof entry)) return GuestStop::unmapped();
  return entry;
}

}  // namespace anykvm::x86::paging
