#include "x86/sys/segments.h"
#include "x86/sys/testing.h"

namespace anykvm::x86 {
namespace {

using namespace testing;

class FarTest : public SysTest {
 protected:
  static Insn to(u16 selector, u64 offset = kHandler, u8 size = 4) { return insn(size, offset, selector); }
  void set_call_gate(u16 target, u8 dpl = 3, u8 parameters = 0) {
    set_gdt(kCallGate, gate(kTypeCallGate32, target, kHandler, dpl, parameters));
  }
};

// --- Real and virtual-8086 mode ---

TEST_F(FarTest, real_mode_jump_sets_base_and_offset) {
  start_real();
  EXPECT_TRUE(succeeded(op_far_jmp(cpu, to(0x1234, 0x10, 2))));
  EXPECT_EQ(state.segments[kCs].base, 0x12340u);
  EXPECT_EQ(state.rip, 0x10u);
}

TEST_F(FarTest, real_mode_call_and_return) {
  start_real();
  EXPECT_TRUE(succeeded(op_far_call(cpu, to(0x1234, 0x10, 2))));
  EXPECT_EQ(stack_item<u16>(0), 0x1002u);
  EXPECT_EQ(stack_item<u16>(1), 0u);
  EXPECT_TRUE(succeeded(op_far_ret(cpu, insn(2, 6))));
  EXPECT_EQ(state.rip, 0x1002u);
  EXPECT_EQ(state.segments[kCs].base, 0u);
  EXPECT_EQ(state.gpr[kRsp], 0x8006u);
}

TEST_F(FarTest, real_mode_offset_outside_limit_is_gp) {
  start_real();
  EXPECT_TRUE(faulted(op_far_jmp(cpu, to(0x1234, 0x10000, 4)), kVectorGp, 0));
}

TEST_F(FarTest, real_mode_jump_after_setting_pe_loads_the_descriptor) {
  start_real();
  state.gdtr = {kGdt, kGdtEnd - 1};
  state.cr0 |= kCr0Pe;
  EXPECT_TRUE(succeeded(op_far_jmp(cpu, to(kCode0))));
  EXPECT_EQ(state.code_bits(), 32u);
  EXPECT_EQ(state.segments[kCs].limit, 0xffffffffu);
}

// --- Direct, protected mode ---

TEST_F(FarTest, jump_through_memory_reads_offset_then_selector) {
  start_protected();
  write<u32>(kData, kHandler);
  write<u16>(kData + 4, kCode0);
  EXPECT_TRUE(succeeded(op_far_jmp(cpu, memory_insn(4, kData))));
  EXPECT_EQ(state.rip, kHandler);
}

TEST_F(FarTest, jump_keeps_the_privilege_in_the_selector) {
  start_protected(3);
  EXPECT_TRUE(succeeded(op_far_jmp(cpu, to(kCode3))));
  EXPECT_EQ(state.segments[kCs].selector, kCode3 | 3);
  EXPECT_TRUE(succeeded(op_far_jmp(cpu, to(kConforming0))));
  EXPECT_EQ(state.segments[kCs].selector, kConforming0 | 3);
  EXPECT_EQ(state.cpl, 3);
}

TEST_F(FarTest, jump_to_other_privilege_is_gp) {
  start_protected(3);
  EXPECT_TRUE(faulted(op_far_jmp(cpu, to(kCode0)), kVectorGp, kCode0));
  start_protected(0);
  EXPECT_TRUE(faulted(op_far_jmp(cpu, to(kCode3)), kVectorGp, kCode3));
}

TEST_F(FarTest, null_selector_is_gp_0_and_data_is_gp_with_the_selector) {
  start_protected();
  EXPECT_TRUE(faulted(op_far_jmp(cpu, to(0)), kVectorGp, 0));
  EXPECT_TRUE(faulted(op_far_jmp(cpu, to(kData0)), kVectorGp, kData0));
}

TEST_F(FarTest, absent_code_is_np) {
  start_protected();
  set_gdt(kSpare, flat(kTypeCode, 0, kBig) & kNotPresentMask);
  EXPECT_TRUE(faulted(op_far_jmp(cpu, to(kSpare)), kVectorNp, kSpare));
}

TEST_F(FarTest, call_pushes_the_return_address) {
  start_protected();
  EXPECT_TRUE(succeeded(op_far_call(cpu, to(kCode0))));
  EXPECT_EQ(stack_item<u32>(0), kNextRip);
  EXPECT_EQ(stack_item<u32>(1), kCode0);
}

TEST_F(FarTest, return_to_outer_privilege_releases_parameters_on_both_stacks) {
  start_protected();
  put_on_stack<u32>({kCodeAddress, kCode3 | 3, 0xaaaa, 0xbbbb, kStack3, kData3 | 3});
  EXPECT_TRUE(succeeded(op_far_ret(cpu, insn(4, 8))));
  EXPECT_EQ(state.cpl, 3);
  EXPECT_EQ(state.gpr[kRsp], kStack3 + 8u);
  EXPECT_EQ(state.segments[kSs].selector, kData3 | 3);
  EXPECT_TRUE(state.segments[kDs].unusable);
}

TEST_F(FarTest, return_to_inner_privilege_is_gp) {
  start_protected(3);
  put_on_stack<u32>({kCodeAddress, kCode0});
  EXPECT_TRUE(faulted(op_far_ret(cpu, insn(4)), kVectorGp, kCode0));
}

// --- Call gates ---

TEST_F(FarTest, call_gate_raises_the_privilege_and_copies_parameters) {
  start_protected(3);
  set_call_gate(kCode0, 3, 2);
  put_on_stack<u32>({0x1111, 0x2222});
  EXPECT_TRUE(succeeded(op_far_call(cpu, to(kCallGate | 3, 0xdead))));
  EXPECT_EQ(state.cpl, 0);
  EXPECT_EQ(state.rip, kHandler);
  EXPECT_EQ(state.gpr[kRsp], kStack0 - 24u);
  EXPECT_EQ(stack_item<u32>(0), kNextRip);
  EXPECT_EQ(stack_item<u32>(1), kCode3 | 3u);
  EXPECT_EQ(stack_item<u32>(2), 0x1111u);
  EXPECT_EQ(stack_item<u32>(3), 0x2222u);
  EXPECT_EQ(stack_item<u32>(4), kStack3 - 8u);
  EXPECT_EQ(stack_item<u32>(5), kData3 | 3u);
}

TEST_F(FarTest, call_gate_at_same_privilege_stays_on_the_stack) {
  start_protected();
  set_call_gate(kCode0);
  u64 top = state.gpr[kRsp];
  EXPECT_TRUE(succeeded(op_far_call(cpu, to(kCallGate))));
  EXPECT_EQ(state.gpr[kRsp], top - 8);
}

TEST_F(FarTest, sixteen_bit_call_gate_pushes_words) {
  start_protected();
  set_gdt(kCallGate, gate(kTypeCallGate16, kCode0, 0xffff1234, 0));
  u64 top = state.gpr[kRsp];
  EXPECT_TRUE(succeeded(op_far_call(cpu, to(kCallGate))));
  EXPECT_EQ(state.rip, 0x1234u);
  EXPECT_EQ(state.gpr[kRsp], top - 4);
}

TEST_F(FarTest, jump_through_a_gate_cannot_raise_the_privilege) {
  start_protected(3);
  set_call_gate(kCode0);
  EXPECT_TRUE(faulted(op_far_jmp(cpu, to(kCallGate)), kVectorGp, kCode0));
  set_call_gate(kConforming0);
  EXPECT_TRUE(succeeded(op_far_jmp(cpu, to(kCallGate))));
  EXPECT_EQ(state.cpl, 3);
}

TEST_F(FarTest, gate_dpl_is_checked_against_cpl_and_rpl) {
  start_protected(3);
  set_call_gate(kCode0, 0);
  EXPECT_TRUE(faulted(op_far_call(cpu, to(kCallGate)), kVectorGp, kCallGate));
  start_protected(0);
  EXPECT_TRUE(faulted(op_far_call(cpu, to(kCallGate | 3)), kVectorGp, kCallGate));
}

TEST_F(FarTest, absent_gate_is_np) {
  start_protected();
  set_gdt(kCallGate, gate(kTypeCallGate32, kCode0, kHandler, 0) & kNotPresentMask);
  EXPECT_TRUE(faulted(op_far_call(cpu, to(kCallGate)), kVectorNp, kCallGate));
}

// --- Long mode ---

TEST_F(FarTest, jump_to_compatibility_code_leaves_64_bit_mode) {
  start_long();
  write<u32>(kData, kHandler);
  write<u16>(kData + 4, kCode0);
  EXPECT_TRUE(succeeded(op_far_jmp(cpu, memory_insn(4, kData))));
  EXPECT_EQ(state.code_bits(), 32u);
}

TEST_F(FarTest, jump_from_compatibility_mode_enters_64_bit_mode) {
  start_compatibility(0);
  EXPECT_TRUE(succeeded(op_far_jmp(cpu, to(kCode64Ring0))));
  EXPECT_TRUE(state.code64());
}

TEST_F(FarTest, return_with_64_bit_operands_pops_quadwords) {
  start_long();
  u64 top = state.gpr[kRsp];
  put_on_stack<u64>({kHandler, kCode64Ring0});
  EXPECT_TRUE(succeeded(op_far_ret(cpu, insn(8))));
  EXPECT_EQ(state.rip, kHandler);
  EXPECT_EQ(state.gpr[kRsp], top);
}

TEST_F(FarTest, call_gate_64_raises_the_privilege_with_a_null_ss) {
  start_long(3);
  set_gdt16(kCallGate, gate(kTypeCallGate32, kCode64Ring0, kHandler, 3, 5), 0);
  write<u64>(kData, kHandler + 1);
  write<u16>(kData + 8, kCallGate | 3);
  EXPECT_TRUE(succeeded(op_far_call(cpu, memory_insn(8, kData))));
  EXPECT_EQ(state.cpl, 0);
  EXPECT_EQ(state.rip, kHandler);
  EXPECT_EQ(state.gpr[kRsp], kStack0 - 32u);
  EXPECT_EQ(stack_item<u64>(0), kNextRip);
  EXPECT_EQ(stack_item<u64>(1), kCode64Ring3 | 3u);
  EXPECT_EQ(stack_item<u64>(2), kStack3);
  EXPECT_EQ(stack_item<u64>(3), kData3 | 3u);
  EXPECT_TRUE(state.segments[kSs].unusable);
}

TEST_F(FarTest, call_gate_64_from_compatibility_mode_pushes_quadwords_without_ss_base) {
  start_compatibility(0);
  set_gdt16(kCallGate, gate(kTypeCallGate32, kCode64Ring0, kHandler, 0), 0);
  state.segments[kSs].base = 0x1000;
  u64 top = state.gpr[kRsp];
  EXPECT_TRUE(succeeded(op_far_call(cpu, to(kCallGate))));
  EXPECT_TRUE(state.code64());
  EXPECT_EQ(state.gpr[kRsp], top - 16);
  EXPECT_EQ(read<u64>(top - 16), kNextRip);
}

TEST_F(FarTest, call_gate_64_must_lead_to_64_bit_code) {
  start_long();
  set_gdt16(kCallGate, gate(kTypeCallGate32, kCode0, kHandler, 0), 0);
  write<u32>(kData, 0);
  write<u16>(kData + 4, kCallGate);
  EXPECT_TRUE(faulted(op_far_call(cpu, memory_insn(4, kData)), kVectorGp, kCode0));
}

TEST_F(FarTest, call_gate_64_with_a_type_in_its_upper_half_is_gp) {
  start_long();
  set_gdt16(kCallGate, gate(kTypeCallGate32, kCode64Ring0, kHandler, 0), bit(40));
  write<u32>(kData, 0);
  write<u16>(kData + 4, kCallGate);
  EXPECT_TRUE(faulted(op_far_call(cpu, memory_insn(4, kData)), kVectorGp, kCallGate));
}

}  // namespace
}  // namespace anykvm::x86
