// The permission matrix (SDM 3A 4.6) in every paging mode and page size.
#include "x86/mmu/paging_fixture.h"

namespace anykvm::x86 {
namespace {

constexpr auto kR = Access::kRead, kWr = Access::kWrite, kX = Access::kFetch;
constexpr auto kCode = Privilege::kCurrent, kImplicit = Privilege::kSystem;
constexpr int kOk = PagingGuest::kOk;
constexpr u64 kAll = kP | kW | kU;

// Changes to a CPU at CPL 0 with CR0.WP.
constexpr unsigned kCpl3 = 3, kCpl1 = 1, kCpl2 = 2, kNoWp = 4, kSmep = 8, kSmap = 16, kAc = 32;

struct Row {
  const char* name;
  u64 page;      // flags of the leaf
  u64 tables;    // flags of the entries above
  unsigned cpu;  // CPL and the bits above
  Access access;
  Privilege privilege;
  int expected;  // error code of #PF or kOk
};
void PrintTo(const Row& row, std::ostream* out) { *out << row.name; }

// Data accesses: the same in all modes.
constexpr Row kDataRows[] = {
    // Code at CPL 3.
    {"user_reads_user", kP | kU, kAll, kCpl3, kR, kCode, kOk},
    {"user_writes_user", kAll, kAll, kCpl3, kWr, kCode, kOk},
    {"user_writes_read_only", kP | kU, kAll, kCpl3, kWr, kCode, 7},
    {"user_writes_read_only_without_wp", kP | kU, kAll, kCpl3 | kNoWp, kWr, kCode, 7},
    {"user_reads_supervisor", kP | kW, kAll, kCpl3, kR, kCode, 5},
    {"user_writes_supervisor", kP | kW, kAll, kCpl3, kWr, kCode, 7},
    {"user_reads_not_present", kW | kU, kAll, kCpl3, kR, kCode, 4},
    {"user_writes_not_present", kW | kU, kAll, kCpl3, kWr, kCode, 6},
    {"user_with_smap_reads_user", kAll, kAll, kCpl3 | kSmap, kR, kCode, kOk},
    {"user_with_smap_and_smep_writes_user", kAll, kAll, kCpl3 | kSmap | kSmep, kWr, kCode, kOk},
    // Code at CPL 0 to 2.
    {"supervisor_reads_supervisor", kP, kAll, 0, kR, kCode, kOk},
    {"supervisor_writes_supervisor", kP | kW, kAll, 0, kWr, kCode, kOk},
    {"supervisor_writes_read_only", kP, kAll, 0, kWr, kCode, 3},
    {"supervisor_writes_read_only_without_wp", kP, kAll, kNoWp, kWr, kCode, kOk},
    {"supervisor_writes_user_read_only", kP | kU, kAll, 0, kWr, kCode, 3},
    {"supervisor_writes_user_read_only_without_wp", kP | kU, kAll, kNoWp, kWr, kCode, kOk},
    {"supervisor_reads_user", kP | kU, kAll, 0, kR, kCode, kOk},
    {"supervisor_reads_not_present", 0, kAll, 0, kR, kCode, 0},
    {"supervisor_writes_not_present", 0, kAll, 0, kWr, kCode, 2},
    {"cpl1_reads_supervisor", kP, kAll, kCpl1, kR, kCode, kOk},
    {"cpl2_writes_read_only", kP, kAll, kCpl2, kWr, kCode, 3},
    // SMAP.
    {"smap_denies_read", kAll, kAll, kSmap, kR, kCode, 1},
    {"smap_denies_write", kAll, kAll, kSmap, kWr, kCode, 3},
    {"smap_denies_write_without_wp", kAll, kAll, kSmap | kNoWp, kWr, kCode, 3},
    {"smap_denies_cpl2", kAll, kAll, kSmap | kCpl2, kR, kCode, 1},
    {"smap_with_ac_permits_read", kAll, kAll, kSmap | kAc, kR, kCode, kOk},
    {"smap_with_ac_permits_write", kAll, kAll, kSmap | kAc, kWr, kCode, kOk},
    {"smap_with_ac_keeps_read_only", kP | kU, kAll, kSmap | kAc, kWr, kCode, 3},
    {"smap_ignores_supervisor_pages", kP | kW, kAll, kSmap, kWr, kCode, kOk},
    {"smap_implicit_denied", kAll, kAll, kSmap, kR, kImplicit, 1},
    {"smap_implicit_denied_in_spite_of_ac", kAll, kAll, kSmap | kAc, kR, kImplicit, 1},
    {"smap_implicit_from_cpl3_denied_in_spite_of_ac", kAll, kAll, kSmap | kAc | kCpl3, kWr, kImplicit, 3},
    // Implicit accesses of code at CPL 3 are the supervisor's.
    {"implicit_from_cpl3_reads_supervisor", kP, kAll, kCpl3, kR, kImplicit, kOk},
    {"implicit_from_cpl3_reads_user", kP | kU, kAll, kCpl3, kR, kImplicit, kOk},
    {"implicit_from_cpl3_writes_read_only", kP, kAll, kCpl3, kWr, kImplicit, 3},
    {"implicit_from_cpl3_writes_read_only_without_wp", kP, kAll, kCpl3 | kNoWp, kWr, kImplicit, kOk},
    {"implicit_from_cpl3_reads_not_present", 0, kAll, kCpl3, kR, kImplicit, 0},
};

// Rows about what the upper levels take away; a 4 MiB page of 32-bit paging has no level above it.
constexpr Row kTableRows[] = {
    {"user_reads_below_supervisor_table", kAll, kP | kW, kCpl3, kR, kCode, 5},
    {"user_writes_below_read_only_table", kAll, kP | kU, kCpl3, kWr, kCode, 7},
    {"supervisor_writes_below_read_only_table", kAll, kP | kU, 0, kWr, kCode, 3},
    {"supervisor_writes_below_read_only_table_without_wp", kAll, kP | kU, kNoWp, kWr, kCode, kOk},
    {"smap_ignores_user_page_below_supervisor_table", kAll, kP | kW, kSmap, kR, kCode, kOk},
    {"user_reads_below_absent_table", kAll, kW | kU, kCpl3, kR, kCode, 4},
};

// Fetches, with EFER.NXE.
constexpr Row kFetchRows[] = {
    {"user_fetches_user", kP | kU, kAll, kCpl3, kX, kCode, kOk},
    {"user_fetches_supervisor", kP, kAll, kCpl3, kX, kCode, 0x15},
    {"user_fetches_no_execute", kP | kU | kNx, kAll, kCpl3, kX, kCode, 0x15},
    {"user_fetches_not_present", 0, kAll, kCpl3, kX, kCode, 0x14},
    {"user_reads_no_execute", kP | kU | kNx, kAll, kCpl3, kR, kCode, kOk},
    {"supervisor_fetches_supervisor", kP, kAll, 0, kX, kCode, kOk},
    {"supervisor_fetches_user", kP | kU, kAll, 0, kX, kCode, kOk},
    {"supervisor_fetches_no_execute", kP | kNx, kAll, 0, kX, kCode, 0x11},
    {"supervisor_writes_no_execute", kP | kW | kNx, kAll, 0, kWr, kCode, kOk},
    {"smep_denies_user_page", kP | kU, kAll, kSmep, kX, kCode, 0x11},
    {"smep_with_ac_denies_user_page", kP | kU, kAll, kSmep | kAc, kX, kCode, 0x11},
    {"smep_permits_supervisor_page", kP, kAll, kSmep, kX, kCode, kOk},
    {"smep_permits_user_code", kP | kU, kAll, kSmep | kCpl3, kX, kCode, kOk},
    {"smep_permits_reads", kP | kU, kAll, kSmep, kR, kCode, kOk},
    {"smap_permits_fetch_from_user_page", kP | kU, kAll, kSmap, kX, kCode, kOk},
};

constexpr Row kFetchTableRows[] = {
    {"fetch_below_no_execute_table", kAll, kAll | kNx, kCpl3, kX, kCode, 0x15},
    {"read_below_no_execute_table", kAll, kAll | kNx, kCpl3, kR, kCode, kOk},
    {"smep_permits_user_page_below_supervisor_table", kAll, kP | kW, kSmep, kX, kCode, kOk},
};

using Case = std::tuple<PageKind, Row>;

class PagePermissions : public testing::TestWithParam<Case> {
 protected:
  PagePermissions() {
    const auto& [kind, row] = GetParam();
    m_guest.map(kind, row.page, row.tables);
    CpuState& state = m_guest.state;
    state.cpl = row.cpu & 3;
    state.cr0 &= row.cpu & kNoWp ? ~u64{kCr0Wp} : ~u64{0};
    state.cr4 |= (row.cpu & kSmep ? u64{kCr4Smep} : 0) | (row.cpu & kSmap ? u64{kCr4Smap} : 0);
    state.rflags |= row.cpu & kAc ? u64{kFlagAc} : 0;
  }
  PagingGuest m_guest;
};

TEST_P(PagePermissions, access_has_the_expected_error_code) {
  const Row& row = std::get<1>(GetParam());
  EXPECT_EQ(m_guest.error_of(row.access, row.privilege), row.expected);
}

std::string case_name(const testing::TestParamInfo<Case>& info) {
  return std::string(std::get<0>(info.param).name) + "_" + std::get<1>(info.param).name;
}

constexpr PageKind kKindsWithTables[] = {kLegacy4K, kPae4K,  kFour4K, kFour2M,
                                         kFour1G,   kFive4K, kFive2M, kFive1G};
constexpr PageKind kNxKindsWithTables[] = {kPae4K, kFour4K, kFour2M, kFour1G, kFive4K, kFive2M, kFive1G};

INSTANTIATE_TEST_SUITE_P(Data, PagePermissions,
                         testing::Combine(testing::ValuesIn(kAllKinds), testing::ValuesIn(kDataRows)),
                         case_name);
INSTANTIATE_TEST_SUITE_P(Table, PagePermissions,
                         testing::Combine(testing::ValuesIn(kKindsWithTables), testing::ValuesIn(kTableRows)),
                         case_name);
INSTANTIATE_TEST_SUITE_P(Fetch, PagePermissions,
                         testing::Combine(testing::ValuesIn(kNxKinds), testing::ValuesIn(kFetchRows)),
                         case_name);
INSTANTIATE_TEST_SUITE_P(FetchTable, PagePermissions,
                         testing::Combine(testing::ValuesIn(kNxKindsWithTables),
                                          testing::ValuesIn(kFetchTableRows)),
                         case_name);

// The I/D bit of the error code is there only when SMEP or NX is on (SDM 3A 4.7).

TEST(PageFaultCode, fetch_without_smep_and_nx_is_reported_as_a_read) {
  PagingGuest guest;
  guest.map(kLegacy4K, kP);
  guest.state.cpl = 3;
  EXPECT_EQ(guest.error_of(kX), 5);
  guest.map(kFour4K, kP);
  guest.state.efer &= ~u64{kEferNx};
  EXPECT_EQ(guest.error_of(kX), 5);
}

TEST(PageFaultCode, fetch_with_smep_but_not_nx_is_reported_as_a_fetch) {
  PagingGuest guest;
  guest.map(kLegacy4K, kP | kU);
  guest.state.cr4 |= kCr4Smep;
  EXPECT_EQ(guest.error_of(kX), 0x11);
}

TEST(PageFaultCode, fetch_in_32_bit_paging_with_efer_nxe_is_reported_as_a_read) {
  PagingGuest guest;
  guest.map(kLegacy4K, kP);
  guest.state.cpl = 3;
  guest.state.efer = kEferNx;
  EXPECT_EQ(guest.error_of(kX), 5);
}

TEST(PageFaultCode, fault_carries_the_address_and_the_vector) {
  PagingGuest guest;
  guest.map(kFour4K, 0);
  auto result = guest.walk(kR);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().fault.vector, kVectorPf);
  EXPECT_EQ(result.error().fault.payload, guest.address);
  EXPECT_TRUE(result.error().fault.has_error);
}

// --- Protection keys (SDM 3A 4.6.2) ---

class ProtectionKeys : public testing::TestWithParam<PageKind> {
 protected:
  static constexpr unsigned kKey = 9;
  static constexpr u32 kAccessDisable = 1u << (2 * kKey), kWriteDisable = 2u << (2 * kKey);

  // A page of key 9 with `flags`, at `cpl`, with `pkru`.
  int error(u64 flags, u8 cpl, u32 pkru, Access access, Privilege privilege = kCode) {
    m_guest.map(GetParam(), flags | u64{kKey} << 59);
    m_guest.state.cr4 |= kCr4Pke | m_cr4;
    m_guest.state.cr0 &= ~m_cr0_off;
    m_guest.state.cpl = cpl;
    m_guest.state.pkru = pkru;
    return m_guest.error_of(access, privilege);
  }
  PagingGuest m_guest;
  u64 m_cr4 = 0, m_cr0_off = 0;
};

TEST_P(ProtectionKeys, access_disable_denies_data_accesses) {
  EXPECT_EQ(error(kAll, 3, kAccessDisable, kR), 0x25);
  EXPECT_EQ(error(kAll, 3, kAccessDisable, kWr), 0x27);
  EXPECT_EQ(error(kAll, 0, kAccessDisable, kR), 0x21);
  EXPECT_EQ(error(kAll, 3, kAccessDisable, kR, kImplicit), 0x21);
}

TEST_P(ProtectionKeys, access_disable_permits_fetches) { EXPECT_EQ(error(kAll, 3, kAccessDisable, kX), kOk); }

TEST_P(ProtectionKeys, write_disable_denies_writes_only) {
  EXPECT_EQ(error(kAll, 3, kWriteDisable, kWr), 0x27);
  EXPECT_EQ(error(kAll, 3, kWriteDisable, kR), kOk);
}

TEST_P(ProtectionKeys, write_disable_binds_the_supervisor_only_with_wp) {
  EXPECT_EQ(error(kAll, 0, kWriteDisable, kWr), 0x23);
  m_cr0_off = kCr0Wp;
  EXPECT_EQ(error(kAll, 0, kWriteDisable, kWr), kOk);
  EXPECT_EQ(error(kAll, 3, kWriteDisable, kWr), 0x27);
  EXPECT_EQ(error(kAll, 0, kAccessDisable, kWr), 0x23);
}

TEST_P(ProtectionKeys, supervisor_pages_have_no_key) {
  EXPECT_EQ(error(kP | kW, 0, ~u32{0}, kWr), kOk);
  EXPECT_EQ(error(kP | kW, 3, ~u32{0}, kR), 5);
}

TEST_P(ProtectionKeys, other_keys_do_not_matter) {
  EXPECT_EQ(error(kAll, 3, ~(kAccessDisable | kWriteDisable), kWr), kOk);
}

TEST_P(ProtectionKeys, key_bit_is_reported_with_other_violations) {
  EXPECT_EQ(error(kP | kU, 3, kAccessDisable, kWr), 0x27);
  m_cr4 = kCr4Smap;
  EXPECT_EQ(error(kAll, 0, kAccessDisable, kR), 0x21);
}

TEST_P(ProtectionKeys, without_cr4_pke_the_key_is_ignored) {
  m_guest.map(GetParam(), kAll | u64{kKey} << 59);
  m_guest.state.cpl = 3;
  m_guest.state.pkru = ~u32{0};
  EXPECT_EQ(m_guest.error_of(kWr), kOk);
}

TEST_P(ProtectionKeys, denied_write_makes_the_translation_read_only) {
  EXPECT_EQ(error(kAll | kD, 3, kWriteDisable, kR), kOk);
  EXPECT_FALSE(m_guest.translation().writable);
  EXPECT_EQ(error(kAll | kD, 3, 0, kR), kOk);
  EXPECT_TRUE(m_guest.translation().writable);
}

INSTANTIATE_TEST_SUITE_P(Modes, ProtectionKeys, testing::ValuesIn(kLongKinds),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace anykvm::x86
