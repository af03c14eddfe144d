#include "x86/sys/testing.h"

namespace anykvm::x86 {
namespace {

using namespace testing;

class FlagsTest : public SysTest {};

TEST_F(FlagsTest, pushf_hides_vm_and_rf) {
  start_protected();
  state.rflags |= kFlagRf | kFlagIf;
  EXPECT_TRUE(succeeded(op_pushf(cpu, insn(4))));
  EXPECT_EQ(stack_item<u32>(0), u64{kFlagFixed1 | kFlagIf});
}

TEST_F(FlagsTest, pushf_in_v86_needs_iopl_3_or_vme) {
  start_v86(0);
  EXPECT_TRUE(faulted(op_pushf(cpu, insn(2)), kVectorGp, 0));
  state.cr4 |= kCr4Vme;
  state.rflags |= kFlagVif;
  EXPECT_TRUE(succeeded(op_pushf(cpu, insn(2))));
  EXPECT_EQ(stack_item<u16>(0), u64{kFlagFixed1 | kFlagIf | kFlagIopl});
  EXPECT_TRUE(faulted(op_pushf(cpu, insn(4)), kVectorGp, 0));
}

TEST_F(FlagsTest, popf_at_ring_0_sets_iopl_and_if_but_not_vm_vif_vip_rf) {
  start_protected();
  put_on_stack<u32>({0xffffffff});
  EXPECT_TRUE(succeeded(op_popf(cpu, insn(4))));
  u64 expected =
      kFlagsArithmetic | kFlagFixed1 | kFlagTf | kFlagIf | kFlagDf | kFlagIopl | kFlagNt | kFlagAc | kFlagId;
  EXPECT_EQ(state.rflags, expected);
}

TEST_F(FlagsTest, popf_at_ring_3_keeps_iopl_and_if) {
  start_protected(3);
  put_on_stack<u32>({kFlagIf | kFlagIopl | kFlagCf});
  EXPECT_TRUE(succeeded(op_popf(cpu, insn(4))));
  EXPECT_EQ(state.rflags, u64{kFlagFixed1 | kFlagCf});
}

TEST_F(FlagsTest, popf_16_keeps_the_upper_flags) {
  start_protected();
  state.rflags |= kFlagAc | kFlagId;
  put_on_stack<u16>({0});
  EXPECT_TRUE(succeeded(op_popf(cpu, insn(2))));
  EXPECT_EQ(state.rflags, u64{kFlagFixed1 | kFlagAc | kFlagId});
}

TEST_F(FlagsTest, popf_in_v86_with_vme_moves_if_to_vif) {
  start_v86(0);
  state.cr4 |= kCr4Vme;
  put_on_stack<u16>({kFlagIf});
  EXPECT_TRUE(succeeded(op_popf(cpu, insn(2))));
  EXPECT_EQ(state.rflags, u64{kFlagFixed1 | kFlagVm | kFlagVif});
}

TEST_F(FlagsTest, popf_in_v86_with_vme_faults_on_tf_and_changes_nothing) {
  start_v86(0);
  state.cr4 |= kCr4Vme;
  put_on_stack<u16>({kFlagTf});
  u64 top = state.gpr[kRsp];
  EXPECT_TRUE(faulted(op_popf(cpu, insn(2)), kVectorGp, 0));
  EXPECT_EQ(state.gpr[kRsp], top);
}

TEST_F(FlagsTest, sti_casts_a_shadow_only_when_if_was_clear) {
  start_protected();
  EXPECT_TRUE(succeeded(op_sti(cpu, insn(4))));
  EXPECT_EQ(state.events.shadow, kShadowSti);
  state.events.shadow = 0;
  EXPECT_TRUE(succeeded(op_sti(cpu, insn(4))));
  EXPECT_EQ(state.events.shadow, 0);
}

TEST_F(FlagsTest, cli_and_sti_above_iopl_are_gp) {
  start_protected(3);
  EXPECT_TRUE(faulted(op_cli(cpu, insn(4)), kVectorGp, 0));
  EXPECT_TRUE(faulted(op_sti(cpu, insn(4)), kVectorGp, 0));
  state.rflags |= kFlagIopl;
  EXPECT_TRUE(succeeded(op_sti(cpu, insn(4))));
  EXPECT_NE(state.rflags & kFlagIf, 0u);
}

TEST_F(FlagsTest, pvi_gives_ring_3_a_virtual_interrupt_flag) {
  start_protected(3);
  state.cr4 |= kCr4Pvi;
  EXPECT_TRUE(succeeded(op_sti(cpu, insn(4))));
  EXPECT_EQ(state.rflags, u64{kFlagFixed1 | kFlagVif});
  EXPECT_TRUE(succeeded(op_cli(cpu, insn(4))));
  EXPECT_EQ(state.rflags, u64{kFlagFixed1});
  state.rflags |= kFlagVip;
  EXPECT_TRUE(faulted(op_sti(cpu, insn(4)), kVectorGp, 0));
}

TEST_F(FlagsTest, vme_gives_v86_a_virtual_interrupt_flag) {
  start_v86(0);
  EXPECT_TRUE(faulted(op_sti(cpu, insn(2)), kVectorGp, 0));
  state.cr4 |= kCr4Vme;
  EXPECT_TRUE(succeeded(op_sti(cpu, insn(2))));
  EXPECT_NE(state.rflags & kFlagVif, 0u);
  EXPECT_EQ(state.rflags & kFlagIf, 0u);
}

TEST_F(FlagsTest, stac_and_clac_are_for_ring_0) {
  start_protected();
  EXPECT_TRUE(succeeded(op_stac(cpu, insn(4))));
  EXPECT_NE(state.rflags & kFlagAc, 0u);
  EXPECT_TRUE(succeeded(op_clac(cpu, insn(4))));
  EXPECT_EQ(state.rflags & kFlagAc, 0u);
  start_protected(3);
  EXPECT_TRUE(faulted(op_stac(cpu, insn(4)), kVectorUd));
}

TEST_F(FlagsTest, std_and_cld_change_df_only) {
  start_protected();
  EXPECT_TRUE(succeeded(op_std(cpu, insn(4))));
  EXPECT_EQ(state.rflags, u64{kFlagFixed1 | kFlagDf});
  EXPECT_TRUE(succeeded(op_cld(cpu, insn(4))));
  EXPECT_EQ(state.rflags, u64{kFlagFixed1});
}

}  // namespace
}  // namespace anykvm::x86
