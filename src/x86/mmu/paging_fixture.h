#pragma once
// For tests: a guest with some RAM, and page tables built in it in any paging mode.
// Owner: the test. One thread.

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "x86/mmu/paging.h"
#include "x86/mmu/physical_memory.h"

namespace anykvm::x86 {

inline constexpr u64 kP = bit(0), kW = bit(1), kU = bit(2), kA = bit(5), kD = bit(6), kPs = bit(7),
                     kG = bit(8), kNx = bit(63);

// A paging mode and the level of the entry that maps the page: 1 for 4 KiB, 2 for 2 or 4 MiB, 3 for 1 GiB.
struct PageKind {
  const char* name;
  PagingMode mode;
  unsigned leaf_level;
};
inline constexpr PageKind kLegacy4K{"Legacy4K", PagingMode::k32Bit, 1},
    kLegacy4M{"Legacy4M", PagingMode::k32Bit, 2}, kPae4K{"Pae4K", PagingMode::kPae, 1},
    kPae2M{"Pae2M", PagingMode::kPae, 2}, kFour4K{"FourLevel4K", PagingMode::k4Level, 1},
    kFour2M{"FourLevel2M", PagingMode::k4Level, 2}, kFour1G{"FourLevel1G", PagingMode::k4Level, 3},
    kFive4K{"FiveLevel4K", PagingMode::k5Level, 1}, kFive2M{"FiveLevel2M", PagingMode::k5Level, 2},
    kFive1G{"FiveLevel1G", PagingMode::k5Level, 3};
inline constexpr PageKind kAllKinds[] = {kLegacy4K, kLegacy4M, kPae4K,  kPae2M,  kFour4K,
                                         kFour2M,   kFour1G,   kFive4K, kFive2M, kFive1G};
inline constexpr PageKind kNxKinds[] = {kPae4K, kPae2M, kFour4K, kFour2M, kFour1G, kFive4K, kFive2M, kFive1G};
inline constexpr PageKind kLongKinds[] = {kFour4K, kFour2M, kFour1G, kFive4K, kFive2M, kFive1G};

inline void PrintTo(const PageKind& kind, std::ostream* out) { *out << kind.name; }

class PagingGuest {
 public:
  static constexpr u64 kRamSize = 1 << 20;
  static constexpr u64 kRoot = 0x1000;
  static constexpr int kOk = -1;  // error_of() an access that is permitted

  PagingGuest() : m_ram(kRamSize + kPageSize) {
    MemorySlot slot{.id = 0, .base = Gpa(0), .size = kRamSize, .host = host_base()};
    slot.dirty_bitmap = std::make_shared<std::vector<std::atomic<u64>>>(kRamSize / kPageSize / 64);
    memory.set_slots({slot});
  }

  // Paging on with WP, and NX where the mode has it; the CPU runs at CPL 0.
  void set_mode(PagingMode mode) {
    bool pae = mode != PagingMode::k32Bit;
    bool lma = mode == PagingMode::k4Level || mode == PagingMode::k5Level;
    state.cr0 = kCr0Pe | kCr0Wp | (mode == PagingMode::kNone ? u64{0} : u64{kCr0Pg});
    state.cr4 = (pae ? u64{kCr4Pae} : u64{kCr4Pse}) | (mode == PagingMode::k5Level ? u64{kCr4La57} : u64{0});
    state.efer = (pae ? u64{kEferNx} : u64{0}) | (lma ? kEferLme | kEferLma : u64{0});
    state.cr3 = kRoot;
    m_levels = mode == PagingMode::k5Level   ? 5
               : mode == PagingMode::k4Level ? 4
               : mode == PagingMode::kPae    ? 3
                                             : 2;
    m_index_bits = pae ? 9 : 10;
    m_entry_size = pae ? 8 : 4;
  }

  // Maps the page of `address` with an entry of `leaf` at `leaf_level`; the tables above get `table_flags`.
  void map(const PageKind& kind, u64 leaf, u64 table_flags = kP | kW | kU) {
    set_mode(kind.mode);
    address = kAddress & low_bits(m_levels == 5 ? 57 : m_levels == 4 ? 48 : 32);
    u64 table = kRoot;
    for (unsigned level = m_levels; level >= kind.leaf_level; --level) {
      m_entry_at[level] = table + index(level) * m_entry_size;
      table = kRoot + (m_levels - level + 1) * kPageSize;
      bool is_leaf = level == kind.leaf_level;
      bool pdpte = kind.mode == PagingMode::kPae && level == 3;
      u64 large = level > 1 ? kPs : 0;
      set_entry(level, is_leaf ? leaf | large : table | (pdpte ? kP : table_flags));
    }
    state.pdptes_valid = false;
  }

  u64 entry(unsigned level) const {
    u64 value = 0;
    std::memcpy(&value, host_base() + m_entry_at[level], m_entry_size);
    return value;
  }
  void set_entry(unsigned level, u64 value) {
    std::memcpy(host_base() + m_entry_at[level], &value, m_entry_size);
  }
  void add_bits(unsigned level, u64 value) { set_entry(level, entry(level) | value); }
  unsigned levels() const { return m_levels; }
  // Has the page with the table of `level` been marked as written?
  bool table_dirty(unsigned level) const {
    u64 page = m_entry_at[level] / kPageSize;
    return (*memory.slots()[0].dirty_bitmap)[page / 64].load() >> (page % 64) & 1;
  }

  Guest<Translation> walk(Access access, Privilege privilege = Privilege::kCurrent) const {
    return translate(state, memory, Gva(address), access, privilege, address_bits);
  }
  // Error code of the #PF, or kOk.
  int error_of(Access access, Privilege privilege = Privilege::kCurrent) const {
    auto result = walk(access, privilege);
    return result.ok() ? kOk : static_cast<int>(result.error().fault.error);
  }
  Translation translation(Access access = Access::kRead) const {
    auto result = walk(access);
    EXPECT_TRUE(result.ok());
    return result.ok() ? result.value() : Translation{};
  }

  u8* host_base() const {
    return reinterpret_cast<u8*>(align_up(reinterpret_cast<u64>(m_ram.data()), kPageSize));
  }

  CpuState state;
  PhysicalMemory memory;
  u64 address = 0;
  unsigned address_bits = 46;

 private:
  static constexpr u64 kAddress = 0x00ab'7f40'4060'3123;  // another index at every level

  u64 index(unsigned level) const {
    return (address >> (12 + (level - 1) * m_index_bits)) &
           low_bits(m_levels == 3 && level == 3 ? 2 : m_index_bits);
  }

  std::vector<u8> m_ram;
  u64 m_entry_at[6]{};
  unsigned m_levels = 0, m_index_bits = 0, m_entry_size = 0;
};

}  // namespace anykvm::x86
