// INT n and IRET in every mode.
#include "x86/sys/segments.h"
#include "x86/sys/testing.h"

namespace anykvm::x86 {
namespace {

using namespace testing;

constexpr u64 kFlags = kFlagFixed1 | kFlagCf;

class IretTest : public SysTest {};
class IntTest : public SysTest {};

// --- Real mode ---

TEST_F(IretTest, real_mode_pops_three_words) {
  start_real();
  put_on_stack<u16>({0x1234, 0x0500, kFlagFixed1 | kFlagIf | kFlagIopl | kFlagNt});
  EXPECT_TRUE(succeeded(op_iret(cpu, insn(2))));
  EXPECT_EQ(state.rip, 0x1234u);
  EXPECT_EQ(state.segments[kCs].base, 0x5000u);
  EXPECT_EQ(state.gpr[kRsp], 0x8000u);
  EXPECT_EQ(state.rflags, u64{kFlagFixed1 | kFlagIf | kFlagIopl | kFlagNt});
}

TEST_F(IretTest, real_mode_32_bit_form_loads_upper_flags_except_vm_vif_vip) {
  start_real();
  put_on_stack<u32>({0x1234, 0x0500, 0xffffffff});
  EXPECT_TRUE(succeeded(op_iret(cpu, insn(4))));
  EXPECT_EQ(state.rflags, 0x257fd7u);
}

TEST_F(IretTest, real_mode_target_outside_limit_is_gp_and_changes_nothing) {
  start_real();
  put_on_stack<u32>({0x10000, 0x0500, 2});
  u64 top = state.gpr[kRsp];
  EXPECT_TRUE(faulted(op_iret(cpu, insn(4)), kVectorGp, 0));
  EXPECT_EQ(state.gpr[kRsp], top);
}

// --- Virtual-8086 mode ---

TEST_F(IretTest, v86_needs_iopl_3) {
  start_v86(0);
  EXPECT_TRUE(faulted(op_iret(cpu, insn(2)), kVectorGp, 0));
}

TEST_F(IretTest, v86_keeps_iopl_and_vm) {
  start_v86(3);
  put_on_stack<u32>({0x10, 0x1000, kFlagFixed1 | kFlagIf});
  EXPECT_TRUE(succeeded(op_iret(cpu, insn(4))));
  EXPECT_EQ(state.rflags, u64{kFlagFixed1 | kFlagIf | kFlagIopl | kFlagVm});
  EXPECT_TRUE(state.v86_mode());
}

TEST_F(IretTest, v86_with_vme_moves_if_to_vif) {
  start_v86(0);
  state.cr4 |= kCr4Vme;
  put_on_stack<u16>({0x10, 0x1000, kFlagFixed1 | kFlagIf});
  EXPECT_TRUE(succeeded(op_iret(cpu, insn(2))));
  EXPECT_EQ(state.rflags, u64{kFlagFixed1 | kFlagVif | kFlagVm});
}

TEST_F(IretTest, v86_with_vme_faults_on_pending_virtual_interrupt) {
  start_v86(0);
  state.cr4 |= kCr4Vme;
  state.rflags |= kFlagVip;
  put_on_stack<u16>({0x10, 0x1000, kFlagFixed1 | kFlagIf});
  EXPECT_TRUE(faulted(op_iret(cpu, insn(2)), kVectorGp, 0));
}

TEST_F(IretTest, ring_0_enters_v86_with_all_segments) {
  start_protected();
  put_on_stack<u32>(
      {0x100, 0x1000, kFlagFixed1 | kFlagVm | kFlagIf, 0x8000, 0x2000, 0x3000, 0x3100, 0x3200, 0x3300});
  EXPECT_TRUE(succeeded(op_iret(cpu, insn(4))));
  EXPECT_TRUE(state.v86_mode());
  EXPECT_EQ(state.cpl, 3);
  EXPECT_EQ(state.rip, 0x100u);
  EXPECT_EQ(state.gpr[kRsp], 0x8000u);
  EXPECT_EQ(state.segments[kSs].base, 0x20000u);
  EXPECT_EQ(state.segments[kEs].base, 0x30000u);
  EXPECT_EQ(state.segments[kGs].base, 0x33000u);
  EXPECT_EQ(state.segments[kCs].limit, 0xffffu);
}

TEST_F(IretTest, iret_to_v86_keeps_rf) {
  start_protected();
  put_on_stack<u32>({0x100, 0x1000, kFlagFixed1 | kFlagVm | kFlagRf, 0x8000, 0x2000, 0, 0, 0, 0});
  EXPECT_TRUE(succeeded(op_iret(cpu, insn(4))));
  EXPECT_NE(state.rflags & kFlagRf, 0u);
}

TEST_F(IretTest, ring_3_cannot_set_vm) {
  start_protected(3);
  put_on_stack<u32>({kCodeAddress, kCode3 | 3, kFlags | kFlagVm});
  EXPECT_TRUE(succeeded(op_iret(cpu, insn(4))));
  EXPECT_EQ(state.rflags, kFlags);
}

// --- Protected mode ---

TEST_F(IretTest, same_privilege_pops_three_items) {
  start_protected();
  u64 top = state.gpr[kRsp];
  put_on_stack<u32>({kHandler, kCode0, kFlags | kFlagIf | kFlagIopl});
  EXPECT_TRUE(succeeded(op_iret(cpu, insn(4))));
  EXPECT_EQ(state.rip, kHandler);
  EXPECT_EQ(state.gpr[kRsp], top);
  EXPECT_EQ(state.rflags, kFlags | kFlagIf | kFlagIopl);
}

TEST_F(IretTest, outer_privilege_pops_the_stack_and_drops_ring_0_segments) {
  start_protected();
  put_on_stack<u32>({kCodeAddress, kCode3 | 3, kFlags, kStack3, kData3 | 3});
  state.segments[kEs] = segment_from_descriptor(kData3 | 3, gdt_entry(kData3));
  EXPECT_TRUE(succeeded(op_iret(cpu, insn(4))));
  EXPECT_EQ(state.cpl, 3);
  EXPECT_EQ(state.gpr[kRsp], kStack3);
  EXPECT_EQ(state.segments[kSs].selector, kData3 | 3);
  EXPECT_TRUE(state.segments[kDs].unusable);
  EXPECT_FALSE(state.segments[kEs].unusable);
}

TEST_F(IretTest, sixteen_bit_outer_stack_keeps_the_upper_half_of_esp) {
  start_protected();
  put_on_stack<u32>({kCodeAddress, kCode3 | 3, kFlags, 0xabcd1234, kData16Ring3 | 3});
  EXPECT_TRUE(succeeded(op_iret(cpu, insn(4))));
  EXPECT_EQ(state.gpr[kRsp], 0x00011234u);
}

TEST_F(IretTest, ring_3_changes_neither_iopl_nor_if) {
  start_protected(3);
  put_on_stack<u32>({kCodeAddress, kCode3 | 3, kFlags | kFlagIf | kFlagIopl});
  EXPECT_TRUE(succeeded(op_iret(cpu, insn(4))));
  EXPECT_EQ(state.rflags, kFlags);
}

TEST_F(IretTest, inner_privilege_is_gp_with_the_selector) {
  start_protected(3);
  put_on_stack<u32>({kCodeAddress, kCode0, kFlags});
  EXPECT_TRUE(faulted(op_iret(cpu, insn(4)), kVectorGp, kCode0));
}

TEST_F(IretTest, null_code_is_gp_0_and_data_as_code_is_gp_with_the_selector) {
  start_protected();
  put_on_stack<u32>({kCodeAddress, 0, kFlags});
  EXPECT_TRUE(faulted(op_iret(cpu, insn(4)), kVectorGp, 0));
  put_on_stack<u32>({kCodeAddress, kData0, kFlags});
  EXPECT_TRUE(faulted(op_iret(cpu, insn(4)), kVectorGp, kData0));
}

TEST_F(IretTest, bad_outer_stack_is_gp_with_its_selector_and_changes_nothing) {
  start_protected();
  put_on_stack<u32>({kCodeAddress, kCode3 | 3, kFlags | kFlagIf, kStack3, kData0});
  u64 top = state.gpr[kRsp];
  EXPECT_TRUE(faulted(op_iret(cpu, insn(4)), kVectorGp, kData0));
  EXPECT_EQ(state.gpr[kRsp], top);
  EXPECT_EQ(state.cpl, 0);
  EXPECT_EQ(state.rflags & kFlagIf, 0u);
}

// --- Long mode ---

TEST_F(IretTest, long_mode_pops_five_items_at_the_same_privilege_too) {
  start_long();
  put_on_stack<u64>({kHandler, kCode64Ring0, kFlags | kFlagIf, kIstStack, kData0});
  EXPECT_TRUE(succeeded(op_iret(cpu, insn(8))));
  EXPECT_EQ(state.rip, kHandler);
  EXPECT_EQ(state.gpr[kRsp], kIstStack);
  EXPECT_EQ(state.rflags, kFlags | kFlagIf);
}

TEST_F(IretTest, long_mode_returns_to_64_bit_ring_3) {
  start_long();
  put_on_stack<u64>({kCodeAddress, kCode64Ring3 | 3, kFlags, kStack3, kData3 | 3});
  EXPECT_TRUE(succeeded(op_iret(cpu, insn(8))));
  EXPECT_TRUE(state.code64());
  EXPECT_EQ(state.cpl, 3);
}

TEST_F(IretTest, long_mode_returns_to_compatibility_mode) {
  start_long();
  put_on_stack<u64>({kCodeAddress, kCode3 | 3, kFlags, kStack3, kData3 | 3});
  EXPECT_TRUE(succeeded(op_iret(cpu, insn(8))));
  EXPECT_EQ(state.code_bits(), 32u);
  EXPECT_EQ(state.cpl, 3);
}

TEST_F(IretTest, long_mode_null_ss_is_allowed_for_64_bit_ring_0_only) {
  start_long();
  put_on_stack<u64>({kHandler, kCode64Ring0, kFlags, kIstStack, 0});
  EXPECT_TRUE(succeeded(op_iret(cpu, insn(8))));
  EXPECT_TRUE(state.segments[kSs].unusable);
  put_on_stack<u64>({kHandler, kCode64Ring3 | 3, kFlags, kStack3, 3});
  EXPECT_TRUE(faulted(op_iret(cpu, insn(8)), kVectorGp, 0));
  put_on_stack<u64>({kHandler, kCode0, kFlags, kIstStack, 0});
  EXPECT_TRUE(faulted(op_iret(cpu, insn(8)), kVectorGp, 0));
}

TEST_F(IretTest, long_mode_non_canonical_rip_is_gp_0) {
  start_long();
  put_on_stack<u64>({bit(47), kCode64Ring0, kFlags, kIstStack, kData0});
  EXPECT_TRUE(faulted(op_iret(cpu, insn(8)), kVectorGp, 0));
}

TEST_F(IretTest, long_mode_keeps_fs_base_of_a_null_selector) {
  start_long();
  state.segments[kFs].base = 0x7f0012340000;
  put_on_stack<u64>({kCodeAddress, kCode64Ring3 | 3, kFlags, kStack3, kData3 | 3});
  EXPECT_TRUE(succeeded(op_iret(cpu, insn(8))));
  EXPECT_EQ(state.segments[kFs].base, 0x7f0012340000u);
}

TEST_F(IretTest, code_segment_with_l_and_d_is_gp) {
  start_long();
  set_gdt(kSpare, flat(kTypeCode, 0, kLong | kBig));
  put_on_stack<u64>({kHandler, kSpare, kFlags, kIstStack, kData0});
  EXPECT_TRUE(faulted(op_iret(cpu, insn(8)), kVectorGp, kSpare));
}

// --- INT n ---

TEST_F(IntTest, into_does_nothing_without_overflow) {
  start_protected();
  EXPECT_TRUE(succeeded(op_into(cpu, insn(4))));
  EXPECT_EQ(state.rip, kNextRip);
}

TEST_F(IntTest, into_traps_on_overflow) {
  start_protected();
  state.rflags |= kFlagOf;
  set_idt(kVectorOf, gate(kTypeTrapGate32, kCode0, kHandler, 0));
  EXPECT_TRUE(succeeded(op_into(cpu, insn(4))));
  EXPECT_EQ(state.rip, kHandler);
  EXPECT_EQ(stack_item<u32>(0), kNextRip);
}

TEST_F(IntTest, v86_needs_iopl_3_without_vme) {
  start_v86(0);
  EXPECT_TRUE(faulted(op_int(cpu, insn(2, 0x21)), kVectorGp, 0));
}

TEST_F(IntTest, v86_with_vme_and_clear_bitmap_stays_in_the_task) {
  start_v86(0);
  state.cr4 |= kCr4Vme;
  state.rflags |= kFlagVif;
  write<u32>(0x21 * 4, 0x12000034);
  EXPECT_TRUE(succeeded(op_int(cpu, insn(2, 0x21))));
  EXPECT_TRUE(state.v86_mode());
  EXPECT_EQ(state.segments[kCs].base, 0x12000u);
  EXPECT_EQ(state.rip, 0x34u);
  EXPECT_EQ(stack_item<u16>(2), u64{kFlagFixed1 | kFlagIf | kFlagIopl});
  EXPECT_EQ(state.rflags & kFlagVif, 0u);
}

TEST_F(IntTest, v86_with_vme_and_set_bitmap_goes_to_ring_0) {
  start_v86(3);
  state.cr4 |= kCr4Vme;
  write<u8>(kTss + 0x68 + 0x21 / 8, 1 << (0x21 % 8));
  set_idt(0x21, gate(kTypeInterruptGate32, kCode0, kHandler, 3));
  EXPECT_TRUE(succeeded(op_int(cpu, insn(2, 0x21))));
  EXPECT_FALSE(state.v86_mode());
  EXPECT_EQ(state.rip, kHandler);
}

}  // namespace
}  // namespace anykvm::x86
