#include <gtest/gtest.h>

#include "x86/mmu/access.h"

namespace anykvm::x86 {
namespace {

constexpr auto kR = Access::kRead, kWr = Access::kWrite, kX = Access::kFetch;
constexpr u8 kReadOnlyData = 1, kData = 3, kReadOnlyExpandDown = 5, kExpandDown = 7, kExecuteOnly = 9,
             kCode = 11;

// Result of linear_address() in one word: the address, or kFault + the vector.
constexpr u64 kFault = u64{0xdead} << 32;
constexpr u64 kGp = kFault + kVectorGp, kSs0 = kFault + kVectorSs;

class Segmentation : public testing::Test {
 protected:
  void protected_mode() {
    m_state.cr0 |= kCr0Pe;
    for (Segment& segment : m_state.segments) {
      segment = {.base = 0x10000, .limit = 0xfff, .type = kData, .present = 1, .db = 1, .s = 1};
    }
    m_state.segments[kCs].type = kCode;
  }
  void mode64() {
    protected_mode();
    m_state.efer = kEferLme | kEferLma;
    m_state.segments[kCs].l = 1;
    m_state.segments[kCs].db = 0;
  }
  Segment& ds() { return m_state.segments[kDs]; }
  u64 linear(SegmentIndex segment, u64 offset, unsigned size, Access access = kR) const {
    auto result = linear_address(m_state, segment, offset, size, access);
    if (result.ok()) return result.value().value;
    EXPECT_TRUE(result.error().fault.has_error);
    EXPECT_EQ(result.error().fault.error, 0u);
    return kFault + result.error().fault.vector;
  }
  CpuState m_state;
};

// --- Real and virtual-8086 mode ---

TEST_F(Segmentation, real_mode_adds_base) {
  ds().base = 0x12340;
  EXPECT_EQ(linear(kDs, 0xffff, 1), 0x2233fu);
}

TEST_F(Segmentation, real_mode_word_across_the_limit_faults) {
  EXPECT_EQ(linear(kDs, 0xffff, 2), kGp);
  EXPECT_EQ(linear(kSs, 0xffff, 2), kSs0);
  EXPECT_EQ(linear(kDs, 0xfffe, 2), 0xfffeu);
}

TEST_F(Segmentation, real_mode_with_big_limit_reaches_far) {
  ds().limit = 0xffffffff;
  EXPECT_EQ(linear(kDs, 0xfee00000, 4), 0xfee00000u);
}

TEST_F(Segmentation, real_mode_does_not_look_at_type_or_null) {
  m_state.segments[kCs].type = kCode;
  ds().unusable = 1;
  EXPECT_EQ(linear(kCs, 0x10, 2, kWr), m_state.segments[kCs].base + 0x10);
  EXPECT_EQ(linear(kDs, 0x10, 2), 0x10u);
}

TEST_F(Segmentation, real_mode_address_above_1_mib_is_not_cut) {
  ds().base = 0xffff0;
  EXPECT_EQ(linear(kDs, 0xffff, 1), 0x10ffefu);
}

TEST_F(Segmentation, v86_mode_checks_the_limit_and_no_type) {
  protected_mode();
  m_state.rflags |= kFlagVm;
  ds() = {.base = 0x100, .limit = 0xffff, .type = kReadOnlyData};
  EXPECT_EQ(linear(kDs, 0xfffc, 4, kWr), 0x100fcu);
  EXPECT_EQ(linear(kDs, 0xfffd, 4, kWr), kGp);
}

// --- Protected mode ---

TEST_F(Segmentation, last_byte_at_the_limit_is_allowed_and_not_beyond) {
  protected_mode();
  EXPECT_EQ(linear(kDs, 0xffc, 4), 0x10ffcu);
  EXPECT_EQ(linear(kDs, 0xffd, 4), kGp);
  EXPECT_EQ(linear(kSs, 0xffd, 4), kSs0);
  EXPECT_EQ(linear(kDs, 0x1000, 1), kGp);
}

TEST_F(Segmentation, offset_that_wraps_beyond_the_limit_faults) {
  protected_mode();
  ds().limit = 0xffffffff;
  EXPECT_EQ(linear(kDs, 0xfffffffe, 4), kGp);
  EXPECT_EQ(linear(kDs, 0xfffffffc, 4), 0xfffcu);
}

TEST_F(Segmentation, linear_address_wraps_at_4_gib) {
  protected_mode();
  ds().base = 0xfffff000;
  ds().limit = 0xffffffff;
  EXPECT_EQ(linear(kDs, 0x2000, 4), 0x1000u);
}

TEST_F(Segmentation, null_segment_faults) {
  protected_mode();
  ds().unusable = 1;
  m_state.segments[kSs].unusable = 1;
  EXPECT_EQ(linear(kDs, 0, 1), kGp);
  EXPECT_EQ(linear(kSs, 0, 1), kSs0);
}

TEST_F(Segmentation, segment_not_present_faults) {
  protected_mode();
  ds().present = 0;
  EXPECT_EQ(linear(kDs, 0, 1), kGp);
}

TEST_F(Segmentation, read_only_data_denies_writes) {
  protected_mode();
  ds().type = kReadOnlyData;
  EXPECT_EQ(linear(kDs, 0, 1, kR), 0x10000u);
  EXPECT_EQ(linear(kDs, 0, 1, kWr), kGp);
}

TEST_F(Segmentation, code_segment_denies_writes) {
  protected_mode();
  EXPECT_EQ(linear(kCs, 0, 1, kWr), kGp);
  EXPECT_EQ(linear(kCs, 0, 1, kR), 0x10000u);
}

TEST_F(Segmentation, execute_only_code_denies_reads_and_permits_fetches) {
  protected_mode();
  m_state.segments[kCs].type = kExecuteOnly;
  EXPECT_EQ(linear(kCs, 0, 1, kR), kGp);
  EXPECT_EQ(linear(kCs, 0, 1, kX), 0x10000u);
}

TEST_F(Segmentation, fetch_beyond_the_limit_faults) {
  protected_mode();
  EXPECT_EQ(linear(kCs, 0x1000, 1, kX), kGp);
}

TEST_F(Segmentation, fetch_right_after_entering_protected_mode_ignores_the_type) {
  protected_mode();
  m_state.segments[kCs].type = kData;
  EXPECT_EQ(linear(kCs, 0, 1, kX), 0x10000u);
}

// --- Expand-down ---

TEST_F(Segmentation, expand_down_permits_above_the_limit_only) {
  protected_mode();
  ds().type = kExpandDown;
  EXPECT_EQ(linear(kDs, 0xfff, 1, kWr), kGp);
  EXPECT_EQ(linear(kDs, 0x1000, 1, kWr), 0x11000u);
  EXPECT_EQ(linear(kDs, 0xffe, 4, kWr), kGp);
}

TEST_F(Segmentation, expand_down_with_b_ends_at_4_gib) {
  protected_mode();
  ds().type = kExpandDown;
  EXPECT_EQ(linear(kDs, 0xfffffffc, 4), 0xfffcu);
  EXPECT_EQ(linear(kDs, 0xfffffffd, 4), kGp);
}

TEST_F(Segmentation, expand_down_without_b_ends_at_64_kib) {
  protected_mode();
  m_state.segments[kSs].type = kExpandDown;
  m_state.segments[kSs].db = 0;
  EXPECT_EQ(linear(kSs, 0xfffe, 2), 0x1fffeu);
  EXPECT_EQ(linear(kSs, 0xffff, 2), kSs0);
  EXPECT_EQ(linear(kSs, 0x10000, 2), kSs0);
}

TEST_F(Segmentation, read_only_expand_down_denies_writes) {
  protected_mode();
  ds().type = kReadOnlyExpandDown;
  EXPECT_EQ(linear(kDs, 0x1000, 1, kWr), kGp);
  EXPECT_EQ(linear(kDs, 0x1000, 1, kR), 0x11000u);
}

TEST_F(Segmentation, conforming_code_is_not_expand_down) {
  protected_mode();
  m_state.segments[kCs].type = kCode | 4;
  EXPECT_EQ(linear(kCs, 0, 1, kR), 0x10000u);
}

// --- IA-32e mode ---

TEST_F(Segmentation, mode64_ignores_base_and_limit_but_of_fs_and_gs) {
  mode64();
  m_state.segments[kFs].base = 0xffff888000000000;
  EXPECT_EQ(linear(kDs, 0x123456789, 8), 0x123456789u);
  EXPECT_EQ(linear(kFs, 0x10, 8), 0xffff888000000010u);
  EXPECT_EQ(linear(kGs, 0x12345678, 8), 0x12355678u);
}

TEST_F(Segmentation, mode64_ignores_null_and_type) {
  mode64();
  ds().unusable = 1;
  EXPECT_EQ(linear(kDs, 0x10, 8, kWr), 0x10u);
  EXPECT_EQ(linear(kCs, 0x10, 8, kWr), 0x10u);
}

TEST_F(Segmentation, mode64_non_canonical_faults_by_segment) {
  mode64();
  EXPECT_EQ(linear(kDs, 0x800000000000, 1), kGp);
  EXPECT_EQ(linear(kSs, 0x800000000000, 1), kSs0);
  EXPECT_EQ(linear(kDs, 0xffff7fffffffffff, 1), kGp);
}

TEST_F(Segmentation, mode64_operand_that_ends_in_the_hole_faults) {
  mode64();
  EXPECT_EQ(linear(kDs, 0x7ffffffffff8, 8), 0x7ffffffffff8u);
  EXPECT_EQ(linear(kDs, 0x7ffffffffff9, 8), kGp);
  EXPECT_EQ(linear(kSs, 0x7ffffffffff9, 8), kSs0);
}

TEST_F(Segmentation, mode64_base_plus_offset_may_wrap) {
  mode64();
  m_state.segments[kGs].base = 0xffffffff80000000;
  EXPECT_EQ(linear(kGs, 0x80000010, 8), 0x10u);
}

TEST_F(Segmentation, five_level_paging_widens_canonical_addresses) {
  mode64();
  m_state.cr4 |= kCr4La57;
  EXPECT_EQ(linear(kDs, 0x800000000000, 8), 0x800000000000u);
  EXPECT_EQ(linear(kDs, 0x0100000000000000, 8), kGp);
}

TEST_F(Segmentation, compatibility_mode_checks_segments_and_wraps_at_4_gib) {
  mode64();
  m_state.segments[kCs].l = 0;
  ds().limit = 0xffffffff;
  ds().base = 0xffff0000;
  EXPECT_EQ(linear(kDs, 0x20000, 4), 0x10000u);
  EXPECT_EQ(linear(kEs, 0x1000, 4), kGp);
}

}  // namespace
}  // namespace anykvm::x86
