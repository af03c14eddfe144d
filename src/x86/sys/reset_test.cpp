#include "x86/sys/reset.h"

#include <gtest/gtest.h>

namespace anykvm::x86 {
namespace {

TEST(ResetTest, power_up_starts_at_the_top_of_the_first_four_gigabytes) {
  CpuState state;
  reset_cpu(state, CpuModel(), false);
  EXPECT_EQ(state.segments[kCs].base + state.rip, 0xfffffff0u);
  EXPECT_EQ(state.segments[kCs].selector, 0xf000);
  EXPECT_EQ(state.cr0, 0x60000010u);
  EXPECT_EQ(state.rflags, 2u);
  EXPECT_EQ(state.gpr[kRdx], 0x600u);
  EXPECT_EQ(state.dr6, 0xffff0ff0u);
  EXPECT_EQ(state.dr7, 0x400u);
  EXPECT_EQ(state.xcr0, 1u);
}

TEST(ResetTest, power_up_shows_the_signature_of_the_model_in_edx) {
  CpuModel model;
  model.set_entries({CpuidEntry{.function = 0, .eax = 1}, CpuidEntry{.function = 1, .eax = 0x806f8}});
  CpuState state;
  reset_cpu(state, model, false);
  EXPECT_EQ(state.gpr[kRdx], 0x806f8u);
}

TEST(ResetTest, init_keeps_xcr0_msrs_and_cache_bits) {
  CpuState state;
  state.cr0 = kCr0Pe | kCr0Pg | kCr0Cd;
  state.xcr0 = 7;
  state.msrs.lstar = 0x1234;
  reset_cpu(state, CpuModel(), true);
  EXPECT_EQ(state.cr0, u64{kCr0Et | kCr0Cd});
  EXPECT_EQ(state.xcr0, 7u);
  EXPECT_EQ(state.msrs.lstar, 0x1234u);
}

TEST(ResetTest, power_up_clears_msrs_and_events) {
  CpuState state;
  state.msrs.lstar = 0x1234;
  state.events.nmi.masked = true;
  state.cpl = 3;
  reset_cpu(state, CpuModel(), false);
  EXPECT_EQ(state.msrs.lstar, 0u);
  EXPECT_FALSE(state.events.nmi.masked);
  EXPECT_EQ(state.cpl, 0);
}

}  // namespace
}  // namespace anykvm::x86
