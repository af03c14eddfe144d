// Addresses, reserved bits, accessed and dirty flags; permissions are in paging_permissions_test.cpp.
#include "x86/mmu/paging.h"

#include <atomic>
#include <thread>

#include "x86/mmu/paging_fixture.h"

namespace anykvm::x86 {
namespace {

constexpr auto kR = Access::kRead, kWr = Access::kWrite, kX = Access::kFetch;
constexpr int kOk = PagingGuest::kOk;
constexpr u64 kAll = kP | kW | kU;

std::string kind_name(const testing::TestParamInfo<PageKind>& info) { return info.param.name; }

// --- No paging ---

TEST(NoPaging, linear_is_physical_and_everything_is_allowed) {
  PagingGuest guest;
  guest.set_mode(PagingMode::kNone);
  guest.address = 0xfee00123;
  guest.state.cpl = 3;
  Translation translation = guest.translation(kWr);
  EXPECT_EQ(translation.gpa.value, 0xfee00123u);
  EXPECT_TRUE(translation.writable && translation.executable && translation.user);
  EXPECT_FALSE(translation.global);
  EXPECT_EQ(translation.page_size, kPageSize);
}

TEST(NoPaging, pae_smap_and_wp_bits_change_nothing) {
  PagingGuest guest;
  guest.set_mode(PagingMode::kNone);
  guest.state.cr4 = kCr4Pae | kCr4Smap | kCr4Smep;
  EXPECT_EQ(guest.error_of(kR), kOk);
  EXPECT_EQ(guest.error_of(kX), kOk);
}

// --- Every page size ---

class PageKinds : public testing::TestWithParam<PageKind> {
 protected:
  const PageKind& kind() const { return GetParam(); }
  unsigned shift() const {
    bool legacy = kind().mode == PagingMode::k32Bit;
    return 12 + (kind().leaf_level - 1) * (legacy ? 10 : 9);
  }
  // A physical page frame of this size, within 32 bits.
  u64 frame() const { return 0x80000000 | (kind().leaf_level == 1 ? 0x00abc000 : 0); }
  // Bits of all entries from the leaf up, PAE's PDPTEs excepted.
  u64 common_bits() const {
    u64 common = ~u64{0};
    unsigned top = kind().mode == PagingMode::kPae ? 2 : m_guest.levels();
    for (unsigned level = kind().leaf_level; level <= top; ++level) common &= m_guest.entry(level);
    return common;
  }
  // Bits that any entry above the leaf has.
  u64 table_bits() const {
    u64 any = 0;
    for (unsigned level = kind().leaf_level + 1; level <= m_guest.levels(); ++level)
      any |= m_guest.entry(level);
    return any;
  }
  PagingGuest m_guest;
};
INSTANTIATE_TEST_SUITE_P(Modes, PageKinds, testing::ValuesIn(kAllKinds), kind_name);

TEST_P(PageKinds, mapped_page_gives_frame_and_offset) {
  m_guest.map(kind(), frame() | kAll);
  Translation translation = m_guest.translation();
  EXPECT_EQ(translation.gpa.value, frame() | (m_guest.address & low_bits(shift())));
  EXPECT_EQ(translation.page_size, u64{1} << shift());
}

TEST_P(PageKinds, debug_translation_gives_the_same_address_and_touches_nothing) {
  m_guest.map(kind(), frame() | kAll);
  DebugTranslation translation = translate_for_debug(m_guest.state, m_guest.memory, Gva(m_guest.address));
  EXPECT_TRUE(translation.valid && translation.writable && translation.user);
  EXPECT_EQ(translation.gpa.value, frame() | (m_guest.address & low_bits(shift())));
  EXPECT_EQ(common_bits() & kA, 0u);
}

TEST_P(PageKinds, debug_translation_of_absent_page_is_invalid) {
  m_guest.map(kind(), frame());
  EXPECT_FALSE(translate_for_debug(m_guest.state, m_guest.memory, Gva(m_guest.address)).valid);
}

TEST_P(PageKinds, debug_translation_reports_supervisor_and_read_only) {
  m_guest.map(kind(), frame() | kP);
  DebugTranslation translation = translate_for_debug(m_guest.state, m_guest.memory, Gva(m_guest.address));
  EXPECT_TRUE(translation.valid);
  EXPECT_FALSE(translation.writable || translation.user);
}

TEST_P(PageKinds, read_sets_accessed_everywhere_and_not_dirty) {
  m_guest.map(kind(), kAll);
  EXPECT_EQ(m_guest.error_of(kR), kOk);
  EXPECT_EQ(common_bits() & kA, kA);
  EXPECT_EQ(m_guest.entry(kind().leaf_level) & kD, 0u);
  EXPECT_TRUE(m_guest.table_dirty(kind().leaf_level));
}

TEST_P(PageKinds, write_sets_dirty_in_the_leaf_only) {
  m_guest.map(kind(), kAll);
  EXPECT_EQ(m_guest.error_of(kWr), kOk);
  EXPECT_EQ(m_guest.entry(kind().leaf_level) & (kA | kD), kA | kD);
  EXPECT_EQ(common_bits() & kA, kA);
  EXPECT_EQ(table_bits() & kD, 0u);
}

TEST_P(PageKinds, write_to_accessed_page_still_sets_dirty) {
  m_guest.map(kind(), kAll | kA);
  EXPECT_EQ(m_guest.error_of(kWr), kOk);
  EXPECT_EQ(m_guest.entry(kind().leaf_level) & kD, kD);
}

TEST_P(PageKinds, flags_already_set_do_not_write_the_tables) {
  m_guest.map(kind(), kAll | kA | kD, kAll | kA);
  EXPECT_EQ(m_guest.error_of(kWr), kOk);
  EXPECT_FALSE(m_guest.table_dirty(kind().leaf_level));
}

TEST_P(PageKinds, faulting_access_sets_no_flags) {
  m_guest.map(kind(), kP | kW);
  m_guest.state.cpl = 3;
  EXPECT_EQ(m_guest.error_of(kWr), 7);
  EXPECT_EQ(m_guest.entry(kind().leaf_level) & (kA | kD), 0u);
}

TEST_P(PageKinds, tables_in_read_only_memory_keep_their_flags) {
  m_guest.map(kind(), kAll);
  std::vector<MemorySlot> slots = m_guest.memory.slots();
  slots[0].read_only = true;
  m_guest.memory.set_slots(slots);
  EXPECT_EQ(m_guest.error_of(kWr), kOk);
  EXPECT_EQ(m_guest.entry(kind().leaf_level) & (kA | kD), 0u);
  EXPECT_FALSE(m_guest.translation(kWr).writable);
}

TEST_P(PageKinds, translation_is_writable_only_once_dirty) {
  m_guest.map(kind(), kAll);
  EXPECT_FALSE(m_guest.translation(kR).writable);
  EXPECT_TRUE(m_guest.translation(kWr).writable);
  EXPECT_TRUE(m_guest.translation(kR).writable);
}

TEST_P(PageKinds, translation_of_dirty_read_only_page_is_not_writable) {
  m_guest.map(kind(), kP | kU | kD);
  EXPECT_FALSE(m_guest.translation(kR).writable);
}

TEST_P(PageKinds, global_needs_cr4_pge) {
  m_guest.map(kind(), kAll | kG);
  EXPECT_FALSE(m_guest.translation().global);
  m_guest.state.cr4 |= kCr4Pge;
  EXPECT_TRUE(m_guest.translation().global);
}

TEST_P(PageKinds, user_is_the_and_of_all_levels) {
  m_guest.map(kind(), kAll);
  EXPECT_TRUE(m_guest.translation().user);
  m_guest.map(kind(), kP | kW);
  EXPECT_FALSE(m_guest.translation().user);
}

TEST_P(PageKinds, executable_follows_smep) {
  m_guest.map(kind(), kAll);
  EXPECT_TRUE(m_guest.translation().executable);
  m_guest.state.cr4 |= kCr4Smep;
  EXPECT_FALSE(m_guest.translation().executable);
}

TEST_P(PageKinds, top_table_outside_ram_is_not_present) {
  m_guest.map(kind(), kAll);
  m_guest.state.cr3 = 0x10000000;
  EXPECT_EQ(m_guest.error_of(kWr), 2);
}

TEST_P(PageKinds, seed_X9_page_outside_ram_translates_and_is_no_slot) {
  m_guest.map(kind(), frame() | kAll);
  Gpa gpa = m_guest.translation(kWr).gpa;
  EXPECT_EQ(m_guest.memory.find(gpa), nullptr);
}

TEST_P(PageKinds, compare_exchange_sees_entries_with_all_available_bits) {
  m_guest.map(kind(), kAll | 0xe00, kAll | 0xe00);
  EXPECT_EQ(m_guest.error_of(kWr), kOk);
  EXPECT_EQ(m_guest.entry(kind().leaf_level) & (0xe00 | kA | kD), 0xe00 | kA | kD);
}

// --- Other CPUs change entries meanwhile ---

// Adds 1 to the available bits 52 to 62 of the leaf `count` times, as another CPU's locked instruction would,
// while this thread translates writes and clears A and D again. Returns the counter at the end.
u64 count_while_walking(PagingGuest& guest, u64 count) {
  std::atomic_ref<u64> leaf(
      *reinterpret_cast<u64*>(guest.host_base() + 0x4000 + bits(guest.address, 20, 12) * 8));
  std::atomic<bool> finished{false};
  std::thread other([&] {
    for (u64 i = 0; i < count; ++i) leaf.fetch_add(bit(52));
    finished = true;
  });
  while (!finished) {
    EXPECT_EQ(guest.error_of(kWr), kOk);
    leaf.fetch_and(~(kA | kD));
  }
  other.join();
  return bits(leaf.load(), 62, 52);
}

TEST(AccessedAndDirty, update_of_an_entry_by_another_cpu_is_not_lost) {
  PagingGuest guest;
  guest.map(kFour4K, kAll);
  ASSERT_EQ(guest.entry(1), kAll);
  EXPECT_EQ(count_while_walking(guest, 1000 * 2048 + 77), 77u);
}

// --- Reserved bits ---

struct ReservedRow {
  const char* name;
  PageKind kind;
  unsigned level;  // of the entry that gets the bit
  u64 bits;
  bool reserved;
};
void PrintTo(const ReservedRow& row, std::ostream* out) { *out << row.name; }

class ReservedBits : public testing::TestWithParam<ReservedRow> {
 protected:
  // Of a user-mode write in a guest with 46 physical address bits.
  int error() {
    m_guest.map(GetParam().kind, kAll);
    m_guest.add_bits(GetParam().level, GetParam().bits);
    m_guest.state.cpl = 3;
    m_guest.state.efer &= ~m_efer_off;
    return m_guest.error_of(kWr);
  }
  PagingGuest m_guest;
  u64 m_efer_off = 0;
};

constexpr ReservedRow kReservedRows[] = {
    {"four_leaf_bit46", kFour4K, 1, bit(46), true},
    {"four_leaf_bit51", kFour4K, 1, bit(51), true},
    {"four_leaf_ignored_52_to_62", kFour4K, 1, low_bits(63) & ~low_bits(52), false},
    {"four_leaf_bit45_is_address", kFour4K, 1, bit(45), false},
    {"four_pml4e_bit46", kFour4K, 4, bit(46), true},
    {"four_pml4e_ignored_52_to_62", kFour4K, 4, low_bits(63) & ~low_bits(52), false},
    {"four_pml4e_ps", kFour4K, 4, kPs, true},
    {"five_pml5e_ps", kFive4K, 5, kPs, true},
    {"five_pml4e_ps", kFive4K, 4, kPs, true},
    {"five_pml5e_bit51", kFive4K, 5, bit(51), true},
    {"four_pdpte_bit51", kFour4K, 3, bit(51), true},
    {"four_pde_bit46", kFour4K, 2, bit(46), true},
    {"four_2m_bit13", kFour2M, 2, bit(13), true},
    {"four_2m_bit20", kFour2M, 2, bit(20), true},
    {"four_2m_pat_bit12", kFour2M, 2, bit(12), false},
    {"four_2m_bit21_is_address", kFour2M, 2, bit(21), false},
    {"four_1g_bit13", kFour1G, 3, bit(13), true},
    {"four_1g_bit29", kFour1G, 3, bit(29), true},
    {"four_1g_bit30_is_address", kFour1G, 3, bit(30), false},
    {"pae_leaf_bit46", kPae4K, 1, bit(46), true},
    {"pae_leaf_bit62", kPae4K, 1, bit(62), true},
    {"pae_pde_bit52", kPae4K, 2, bit(52), true},
    {"pae_2m_bit13", kPae2M, 2, bit(13), true},
    {"pae_2m_bit20", kPae2M, 2, bit(20), true},
    {"pae_pdpte_bit1", kPae4K, 3, bit(1), true},
    {"pae_pdpte_bit8", kPae4K, 3, bit(8), true},
    {"pae_pdpte_bit63", kPae4K, 3, bit(63), true},
    {"pae_pdpte_ignored_9_to_11", kPae4K, 3, 0xe00, false},
    {"legacy_4m_bit21", kLegacy4M, 2, bit(21), true},
    {"legacy_4m_pse36_bit20_is_address", kLegacy4M, 2, bit(20), false},
    {"legacy_4k_pat", kLegacy4K, 1, kPs, false},
};
INSTANTIATE_TEST_SUITE_P(Rows, ReservedBits, testing::ValuesIn(kReservedRows),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(ReservedBits, write_faults_with_rsvd_exactly_where_reserved) {
  EXPECT_EQ(error(), GetParam().reserved ? 0xf : kOk);
}

class Seed : public testing::TestWithParam<ReservedRow> {};

// Bit 8 where the manuals ignore it.
constexpr ReservedRow kBit8Rows[] = {
    {"pml5e", kFive4K, 5, bit(8), false},  {"pml4e", kFour4K, 4, bit(8), false},
    {"pdpte", kFour4K, 3, bit(8), false},  {"pde", kFour4K, 2, bit(8), false},
    {"pae_pde", kPae4K, 2, bit(8), false}, {"legacy_pde", kLegacy4K, 2, bit(8), false},
};
INSTANTIATE_TEST_SUITE_P(X5, Seed, testing::ValuesIn(kBit8Rows),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(Seed, seed_X5_bit_8_of_non_leaf_entry_is_not_reserved) {
  PagingGuest guest;
  guest.map(GetParam().kind, kAll);
  guest.add_bits(GetParam().level, GetParam().bits);
  EXPECT_EQ(guest.error_of(kWr), kOk);
  EXPECT_FALSE(guest.translation().global);
}

TEST(ReservedBits, no_execute_without_nxe_is_reserved_in_leaf_and_table) {
  PagingGuest guest;
  guest.map(kFour4K, kAll | kNx);
  guest.state.efer &= ~u64{kEferNx};
  EXPECT_EQ(guest.error_of(kR), 9);
  guest.map(kFour4K, kAll, kAll | kNx);
  guest.state.efer &= ~u64{kEferNx};
  EXPECT_EQ(guest.error_of(kR), 9);
  guest.map(kPae4K, kAll | kNx);
  guest.state.efer &= ~u64{kEferNx};
  EXPECT_EQ(guest.error_of(kR), 9);
}

TEST(ReservedBits, reserved_bit_in_absent_entry_is_just_not_present) {
  PagingGuest guest;
  guest.map(kFour4K, bit(51));
  EXPECT_EQ(guest.error_of(kR), 0);
}

TEST(ReservedBits, fetch_of_reserved_entry_reports_fetch_and_reserved) {
  PagingGuest guest;
  guest.map(kFour4K, kAll | bit(51));
  guest.state.cpl = 3;
  EXPECT_EQ(guest.error_of(kX), 0x1d);
}

TEST(ReservedBits, reserved_bit_wins_over_permissions) {
  PagingGuest guest;
  guest.map(kFour4K, kP | bit(51));
  guest.state.cpl = 3;
  EXPECT_EQ(guest.error_of(kR), 0xd);
}

TEST(ReservedBits, with_52_address_bits_all_of_them_are_address) {
  PagingGuest guest;
  guest.map(kFour4K, kAll | bit(51));
  guest.address_bits = 52;
  EXPECT_EQ(guest.translation().gpa.value, bit(51) | (guest.address & 0xfff));
}

// --- PSE-36 and PSE ---

TEST(Pse36, bits_20_to_13_are_address_bits_39_to_32) {
  PagingGuest guest;
  guest.map(kLegacy4M, 0xc0000000 | u64{0xa5} << 13 | kAll);
  EXPECT_EQ(guest.translation().gpa.value, 0xa5'c0000000 | (guest.address & low_bits(22)));
}

TEST(Pse36, address_bits_above_the_cpus_are_reserved) {
  PagingGuest guest;
  guest.address_bits = 36;
  guest.map(kLegacy4M, bit(16) | kAll);
  EXPECT_EQ(guest.error_of(kR), kOk);
  guest.map(kLegacy4M, bit(17) | kAll);
  EXPECT_EQ(guest.error_of(kR), 9);
}

TEST(Pse36, without_cr4_pse_bit_7_of_a_pde_is_ignored) {
  PagingGuest guest;
  guest.map(kLegacy4K, 0x12345000 | kAll, kAll | kPs);
  guest.state.cr4 = 0;
  EXPECT_EQ(guest.translation().gpa.value, 0x12345000 | (guest.address & 0xfff));
}

// --- PAE's PDPTE registers ---

TEST(Pdptes, loaded_registers_are_used_instead_of_memory) {
  PagingGuest guest;
  guest.map(kPae4K, 0x5000 | kAll);
  ASSERT_TRUE(load_pdptes(guest.state, guest.memory, guest.state.cr3, 46).ok());
  guest.set_entry(3, 0);
  EXPECT_EQ(guest.error_of(kR), kOk);
  guest.state.pdptes_valid = false;
  EXPECT_EQ(guest.error_of(kR), 0);
}

TEST(Pdptes, load_with_reserved_bit_is_gp_and_loads_nothing) {
  PagingGuest guest;
  guest.map(kPae4K, kAll);
  guest.add_bits(3, kW);
  auto result = load_pdptes(guest.state, guest.memory, guest.state.cr3, 46);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().fault.vector, kVectorGp);
  EXPECT_FALSE(guest.state.pdptes_valid);
}

TEST(Pdptes, load_ignores_reserved_bits_of_absent_entries) {
  PagingGuest guest;
  guest.map(kPae4K, kAll);
  guest.set_entry(3, ~kP);
  EXPECT_TRUE(load_pdptes(guest.state, guest.memory, guest.state.cr3, 46).ok());
}

TEST(Pdptes, table_is_32_byte_aligned_only) {
  PagingGuest guest;
  guest.map(kPae4K, 0x5000 | kAll);
  std::memcpy(guest.host_base() + 0x8020, guest.host_base() + PagingGuest::kRoot, 32);
  guest.state.cr3 = 0x8020 | 0x1f;
  EXPECT_EQ(guest.error_of(kR), kOk);
}

// --- Canonical form and wide addresses ---

TEST(DebugTranslation, non_canonical_address_is_invalid) {
  PagingGuest guest;
  guest.map(kFour4K, kAll);
  EXPECT_FALSE(translate_for_debug(guest.state, guest.memory, Gva(guest.address | bit(50))).valid);
}

TEST(FiveLevel, bits_56_to_48_select_the_top_entry) {
  PagingGuest guest;
  guest.map(kFive4K, kAll);
  EXPECT_EQ(guest.error_of(kR), kOk);
  guest.address ^= bit(56);
  EXPECT_EQ(guest.error_of(kR), 0);
}

TEST(FourLevel, pcid_bits_of_cr3_are_not_address) {
  PagingGuest guest;
  guest.map(kFour4K, kAll);
  guest.state.cr4 |= kCr4Pcide;
  guest.state.cr3 |= 0xabc;
  EXPECT_EQ(guest.error_of(kR), kOk);
}

}  // namespace
}  // namespace anykvm::x86
