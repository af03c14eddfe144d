#include "x86/sys/testing.h"

namespace anykvm::x86 {
namespace {

using namespace testing;

class StackTest : public SysTest {
 protected:
  Insn enter(u8 size, u16 locals, u8 level) {
    Insn result = insn(size, locals, level);
    result.code_bits = static_cast<u8>(state.code_bits());
    return result;
  }
  Insn with_opcode(u8 size, u8 opcode) {
    Insn result = enter(size, 0, 0);
    result.opcode = opcode;
    return result;
  }
};

TEST_F(StackTest, enter_level_0_saves_rbp_and_makes_room) {
  start_long();
  u64 top = state.gpr[kRsp];
  state.gpr[kRbp] = 0x1122334455667788;
  EXPECT_TRUE(succeeded(op_enter(cpu, enter(8, 0x20, 0))));
  EXPECT_EQ(state.gpr[kRbp], top - 8);
  EXPECT_EQ(state.gpr[kRsp], top - 8 - 0x20);
  EXPECT_EQ(read<u64>(top - 8), 0x1122334455667788u);
}

TEST_F(StackTest, enter_level_3_copies_two_frame_pointers_and_adds_its_own) {
  start_protected();
  u32 top = static_cast<u32>(state.gpr[kRsp]);
  state.gpr[kRbp] = kData;
  write<u32>(kData - 4, 0x111);
  write<u32>(kData - 8, 0x222);
  EXPECT_TRUE(succeeded(op_enter(cpu, enter(4, 0x10, 3))));
  EXPECT_EQ(read<u32>(top - 4), kData);
  EXPECT_EQ(read<u32>(top - 8), 0x111u);
  EXPECT_EQ(read<u32>(top - 12), 0x222u);
  EXPECT_EQ(read<u32>(top - 16), top - 4);
  EXPECT_EQ(state.gpr[kRbp], top - 4);
  EXPECT_EQ(state.gpr[kRsp], top - 32);
}

TEST_F(StackTest, enter_without_room_is_ss_and_changes_nothing) {
  start_protected();
  state.segments[kSs].limit = 0xfff;
  state.gpr[kRsp] = 0x20;
  EXPECT_TRUE(faulted(op_enter(cpu, enter(4, 0x40, 0)), kVectorSs, 0));
  EXPECT_EQ(state.gpr[kRsp], 0x20u);
}

TEST_F(StackTest, pusha_pushes_the_old_stack_pointer_and_popa_skips_it) {
  start_protected();
  u64 top = state.gpr[kRsp];
  state.gpr[kRax] = 1;
  state.gpr[kRdi] = 7;
  EXPECT_TRUE(succeeded(op_pusha(cpu, insn(4))));
  EXPECT_EQ(state.gpr[kRsp], top - 32);
  EXPECT_EQ(stack_item<u32>(0), 7u);
  EXPECT_EQ(stack_item<u32>(3), top);
  EXPECT_EQ(stack_item<u32>(7), 1u);
  state.gpr[kRax] = state.gpr[kRdi] = 0;
  EXPECT_TRUE(succeeded(op_popa(cpu, insn(4))));
  EXPECT_EQ(state.gpr[kRax], 1u);
  EXPECT_EQ(state.gpr[kRdi], 7u);
  EXPECT_EQ(state.gpr[kRsp], top);
}

TEST_F(StackTest, popa_16_keeps_the_upper_halves) {
  start_real();
  put_on_stack<u16>({1, 2, 3, 4, 5, 6, 7, 8});
  state.gpr[kRax] = 0xaaaa0000;
  EXPECT_TRUE(succeeded(op_popa(cpu, insn(2))));
  EXPECT_EQ(state.gpr[kRax], 0xaaaa0008u);
  EXPECT_EQ(state.gpr[kRdi], 1u);
}

TEST_F(StackTest, bound_compares_signed) {
  start_protected();
  write<i32>(kData, -5);
  write<i32>(kData + 4, 5);
  Insn bound = memory_insn(4, kData);
  bound.reg = kRbx;
  state.gpr[kRbx] = 0xfffffffb;
  EXPECT_TRUE(succeeded(op_bound(cpu, bound)));
  state.gpr[kRbx] = 6;
  EXPECT_TRUE(faulted(op_bound(cpu, bound), kVectorBr));
}

TEST_F(StackTest, xlat_replaces_al_only) {
  start_protected();
  write<u8>(kData + 0x20, 0x99);
  state.gpr[kRbx] = kData;
  state.gpr[kRax] = 0x1120;
  EXPECT_TRUE(succeeded(op_xlat(cpu, memory_insn(1, 0))));
  EXPECT_EQ(state.gpr[kRax], 0x1199u);
}

TEST_F(StackTest, xlat_with_segment_override_reads_from_that_segment) {
  start_protected();
  state.segments[kFs] = state.segments[kDs];
  state.segments[kFs].base = 0x100;
  write<u8>(kData + 0x120, 0x77);
  state.gpr[kRbx] = kData;
  state.gpr[kRax] = 0x20;
  Insn xlat = memory_insn(1, 0);
  xlat.bytes[0] = 0x64;
  xlat.bytes[1] = 0xd7;
  EXPECT_TRUE(succeeded(op_xlat(cpu, xlat)));
  EXPECT_EQ(state.gpr[kRax], 0x77u);
}

TEST_F(StackTest, mov_ss_casts_a_shadow_and_mov_ds_does_not) {
  start_protected();
  Insn mov = insn(2);
  mov.rm = kRax;
  state.gpr[kRax] = kData0;
  mov.reg = kDs;
  EXPECT_TRUE(succeeded(op_mov_to_segment(cpu, mov)));
  EXPECT_EQ(state.events.shadow, 0);
  mov.reg = kSs;
  EXPECT_TRUE(succeeded(op_mov_to_segment(cpu, mov)));
  EXPECT_EQ(state.events.shadow, kShadowMovSs);
}

TEST_F(StackTest, mov_to_cs_or_a_segment_that_does_not_exist_is_ud) {
  start_protected();
  Insn mov = insn(2);
  mov.reg = kCs;
  EXPECT_TRUE(faulted(op_mov_to_segment(cpu, mov), kVectorUd));
  mov.reg = 6;
  EXPECT_TRUE(faulted(op_mov_to_segment(cpu, mov), kVectorUd));
  EXPECT_TRUE(faulted(op_mov_from_segment(cpu, mov), kVectorUd));
}

TEST_F(StackTest, mov_from_segment_zero_extends_into_registers) {
  start_protected();
  Insn mov = insn(4);
  mov.reg = kDs;
  mov.rm = kRcx;
  state.gpr[kRcx] = ~u64{0};
  EXPECT_TRUE(succeeded(op_mov_from_segment(cpu, mov)));
  EXPECT_EQ(state.gpr[kRcx], kData0);
}

TEST_F(StackTest, push_segment_names_the_segment_in_its_opcode) {
  start_protected();
  EXPECT_TRUE(succeeded(op_push_segment(cpu, with_opcode(4, 0x0e))));
  EXPECT_EQ(stack_item<u32>(0), kCode0);
  EXPECT_TRUE(succeeded(op_push_segment(cpu, with_opcode(4, 0xa8))));
  EXPECT_EQ(stack_item<u32>(0), 0u);
}

TEST_F(StackTest, push_segment_in_64_bit_mode_pushes_eight_bytes) {
  start_long();
  u64 top = state.gpr[kRsp];
  EXPECT_TRUE(succeeded(op_push_segment(cpu, with_opcode(4, 0xa0))));
  EXPECT_EQ(state.gpr[kRsp], top - 8);
}

TEST_F(StackTest, pop_segment_loads_and_moves_the_stack_pointer) {
  start_protected();
  u64 top = state.gpr[kRsp];
  put_on_stack<u32>({kData3});
  EXPECT_TRUE(succeeded(op_pop_segment(cpu, with_opcode(4, 0x07))));
  EXPECT_EQ(state.segments[kEs].selector, kData3);
  EXPECT_EQ(state.gpr[kRsp], top);
}

TEST_F(StackTest, pop_ss_casts_a_shadow_and_a_bad_one_changes_nothing) {
  start_protected();
  put_on_stack<u32>({kData0, kCode0});
  EXPECT_TRUE(succeeded(op_pop_segment(cpu, with_opcode(4, 0x17))));
  EXPECT_EQ(state.events.shadow, kShadowMovSs);
  u64 top = state.gpr[kRsp];
  EXPECT_TRUE(faulted(op_pop_segment(cpu, with_opcode(4, 0x17)), kVectorGp, kCode0));
  EXPECT_EQ(state.gpr[kRsp], top);
}

}  // namespace
}  // namespace anykvm::x86
