#include "x86/sys/kvmclock.h"

#include <gtest/gtest.h>

namespace anykvm::x86 {
namespace {

// Nanoseconds that a guest computes from `ticks`.
u64 pvclock_nanoseconds(u64 ticks, PvclockScale scale) {
  ticks = scale.shift < 0 ? ticks >> -scale.shift : ticks << scale.shift;
  return static_cast<u64>((static_cast<unsigned __int128>(ticks) * scale.mul) >> 32);
}

class PvclockScaleOf : public testing::TestWithParam<u32> {};
INSTANTIATE_TEST_SUITE_P(Frequencies, PvclockScaleOf,
                         testing::Values(1'000u, 24'000u, 999'999u, 1'000'000u, 1'000'001u, 2'596'120u,
                                         5'000'000u));

TEST_P(PvclockScaleOf, one_second_of_ticks_is_one_second) {
  u64 ticks = u64{GetParam()} * 1000;
  EXPECT_NEAR(static_cast<double>(pvclock_nanoseconds(ticks, pvclock_scale(GetParam()))), 1e9, 10);
}

TEST_P(PvclockScaleOf, multiplier_uses_all_its_bits) {
  EXPECT_GE(pvclock_scale(GetParam()).mul, 0x80000000u);
}

TEST(PvclockScale, of_no_frequency_is_zero) { EXPECT_EQ(pvclock_scale(0).mul, 0u); }

}  // namespace
}  // namespace anykvm::x86
