#include "x86/sys/control_registers.h"

#include <gtest/gtest.h>

#include "x86/sys/cpu_model.h"

namespace anykvm::x86 {
namespace {

CpuModel supported_model() {
  CpuModel model;
  model.set_entries(supported_cpuid());
  return model;
}

CpuState real_mode() { return {}; }

CpuState protected_mode() {
  CpuState state;
  state.cr0 = kCr0Pe | kCr0Et;
  return state;
}

CpuState long_mode() {
  CpuState state;
  state.cr0 = kCr0Pe | kCr0Et | kCr0Pg;
  state.cr4 = kCr4Pae;
  state.efer = kEferLme | kEferLma;
  state.segments[kCs].l = 1;
  return state;
}

CpuState compatibility_mode() {
  CpuState state = long_mode();
  state.segments[kCs].l = 0;
  return state;
}

bool accepts_cr4(const CpuState& state, u64 value) {
  return valid_cr4_change(supported_model(), state, value);
}

// --- CR4 ---

TEST(Cr4, toggling_la57_in_64_bit_mode_is_refused_X3) {
  EXPECT_FALSE(accepts_cr4(long_mode(), kCr4Pae | kCr4La57));
  CpuState five_level = long_mode();
  five_level.cr4 |= kCr4La57;
  EXPECT_FALSE(accepts_cr4(five_level, kCr4Pae));
}

TEST(Cr4, keeping_la57_in_64_bit_mode_is_accepted_X3) {
  CpuState five_level = long_mode();
  five_level.cr4 |= kCr4La57;
  EXPECT_TRUE(accepts_cr4(five_level, kCr4Pae | kCr4La57 | kCr4Tsd));
}

TEST(Cr4, toggling_la57_in_compatibility_mode_is_refused_X3) {
  EXPECT_FALSE(accepts_cr4(compatibility_mode(), kCr4Pae | kCr4La57));
}

TEST(Cr4, setting_la57_before_paging_is_accepted_X3) {
  EXPECT_TRUE(accepts_cr4(protected_mode(), kCr4Pae | kCr4La57));
}

TEST(Cr4, clearing_pae_in_long_mode_is_refused) { EXPECT_FALSE(accepts_cr4(long_mode(), 0)); }

TEST(Cr4, setting_pcide_outside_long_mode_is_refused) {
  EXPECT_FALSE(accepts_cr4(protected_mode(), kCr4Pae | kCr4Pcide));
}

TEST(Cr4, setting_pcide_with_a_pcid_in_cr3_is_refused) {
  CpuState state = long_mode();
  state.cr3 = 0x1001;
  EXPECT_FALSE(accepts_cr4(state, kCr4Pae | kCr4Pcide));
  state.cr3 = 0x1000;
  EXPECT_TRUE(accepts_cr4(state, kCr4Pae | kCr4Pcide));
}

TEST(Cr4, bits_that_the_model_lacks_are_refused) {
  EXPECT_FALSE(accepts_cr4(protected_mode(), kCr4Vmxe));
  EXPECT_FALSE(accepts_cr4(protected_mode(), kCr4Cet));
  EXPECT_FALSE(accepts_cr4(protected_mode(), bit(32)));
  CpuModel plain;
  plain.set_entries({{1, 0, 0, 0, 0, 0, 0}});
  EXPECT_FALSE(valid_cr4_change(plain, protected_mode(), kCr4Smep));
}

// SEEDS X4.
TEST(GuestOwnedBits, hold_tsd_and_change_no_paging_X4) {
  EXPECT_TRUE(kCr4PossiblyGuestOwned & kCr4Tsd);
  EXPECT_EQ(
      kCr4PossiblyGuestOwned & (kCr4Pae | kCr4Pse | kCr4Pge | kCr4Pcide | kCr4Smep | kCr4Smap | kCr4La57),
      0u);
  EXPECT_EQ(kCr0PossiblyGuestOwned & (kCr0Pe | kCr0Pg | kCr0Wp | kCr0Cd | kCr0Nw), 0u);
}

// --- CR0 ---

struct Cr0Case {
  const char* name;
  u64 value;
  bool valid;
};
class Cr0Combinations : public testing::TestWithParam<Cr0Case> {};
INSTANTIATE_TEST_SUITE_P(
    RealMode, Cr0Combinations,
    testing::Values(Cr0Case{"protected_mode", kCr0Pe, true}, Cr0Case{"paging_alone", kCr0Pg, false},
                    Cr0Case{"paging", kCr0Pg | kCr0Pe, true}, Cr0Case{"nw_alone", kCr0Nw, false},
                    Cr0Case{"nw_and_cd", kCr0Nw | kCr0Cd, true}, Cr0Case{"cd_alone", kCr0Cd, true},
                    Cr0Case{"upper_half", bit(32), false}, Cr0Case{"reserved_bit", bit(7), true}),
    [](const auto& info) { return info.param.name; });
TEST_P(Cr0Combinations, are_judged_by_the_manual) {
  EXPECT_EQ(valid_cr0_change(real_mode(), GetParam().value), GetParam().valid);
}

TEST(Cr0, reserved_bits_are_dropped_and_et_stays) {
  EXPECT_EQ(effective_cr0(bit(7) | kCr0Pe), kCr0Pe | kCr0Et);
}

TEST(Cr0, entering_long_mode_without_pae_is_refused) {
  CpuState state = protected_mode();
  state.efer = kEferLme;
  EXPECT_FALSE(valid_cr0_change(state, kCr0Pe | kCr0Pg));
  state.cr4 = kCr4Pae;
  EXPECT_TRUE(valid_cr0_change(state, kCr0Pe | kCr0Pg));
}

TEST(Cr0, entering_long_mode_with_cs_l_is_refused) {
  CpuState state = protected_mode();
  state.efer = kEferLme;
  state.cr4 = kCr4Pae;
  state.segments[kCs].l = 1;
  EXPECT_FALSE(valid_cr0_change(state, kCr0Pe | kCr0Pg));
}

TEST(Cr0, stopping_paging_in_64_bit_mode_is_refused) {
  EXPECT_FALSE(valid_cr0_change(long_mode(), kCr0Pe));
  EXPECT_TRUE(valid_cr0_change(compatibility_mode(), kCr0Pe));
}

TEST(Cr0, stopping_paging_with_pcide_is_refused) {
  CpuState state = compatibility_mode();
  state.cr4 |= kCr4Pcide;
  EXPECT_FALSE(valid_cr0_change(state, kCr0Pe));
}

// --- The client's state ---

TEST(Sregs, power_up_state_is_valid) { EXPECT_TRUE(valid_sregs(CpuModel(), CpuState{})); }

TEST(Sregs, long_mode_is_valid_before_cpuid_is_set) { EXPECT_TRUE(valid_sregs(CpuModel(), long_mode())); }

TEST(Sregs, lma_without_paging_is_refused) {
  CpuState state = real_mode();
  state.efer = kEferLma;
  EXPECT_FALSE(valid_sregs(CpuModel(), state));
}

TEST(Sregs, long_mode_without_lma_is_refused) {
  CpuState state = long_mode();
  state.efer = kEferLme;
  EXPECT_FALSE(valid_sregs(CpuModel(), state));
}

TEST(Sregs, long_mode_without_pae_is_refused) {
  CpuState state = long_mode();
  state.cr4 = 0;
  EXPECT_FALSE(valid_sregs(CpuModel(), state));
}

TEST(Sregs, cs_l_outside_long_mode_is_refused) {
  CpuState state = protected_mode();
  state.segments[kCs].l = 1;
  EXPECT_FALSE(valid_sregs(CpuModel(), state));
}

TEST(Sregs, paging_without_protection_is_refused) {
  CpuState state = real_mode();
  state.cr0 = kCr0Pg;
  EXPECT_FALSE(valid_sregs(CpuModel(), state));
}

TEST(Sregs, cr3_beyond_the_address_width_is_refused) {
  CpuState state = long_mode();
  state.cr3 = bit(51);
  EXPECT_FALSE(valid_sregs(CpuModel(), state));
}

}  // namespace
}  // namespace anykvm::x86
