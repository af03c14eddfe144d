#include "x86/sys/task_switch.h"

#include "x86/sys/events.h"
#include "x86/sys/testing.h"

namespace anykvm::x86 {
namespace {

using namespace testing;

constexpr u32 kNewEip = 0x12000;
constexpr u32 kNewEsp = 0x50000;

class TaskSwitchTest : public SysTest {
 protected:
  TaskSwitchTest() {
    start_protected();
    write<u32>(kOtherTss + 0x20, kNewEip);
    write<u32>(kOtherTss + 0x24, kFlagFixed1);
    write<u32>(kOtherTss + 0x28, 0xaaaa);  // EAX
    write<u32>(kOtherTss + 0x38, kNewEsp);
    set_tss_segments(kCode0, kData0, kData0);
    state.gpr[kRax] = 0x11111111;
  }

  void set_tss_segments(u16 code, u16 stack, u16 data) {
    write<u32>(kOtherTss + 0x48, data);
    write<u32>(kOtherTss + 0x4c, code);
    write<u32>(kOtherTss + 0x50, stack);
    write<u32>(kOtherTss + 0x54, data);
    write<u32>(kOtherTss + 0x58, 0);
    write<u32>(kOtherTss + 0x5c, 0);
  }
  Guest<void> jump() { return op_far_jmp(cpu, insn(4, 0, kOtherTssSelector)); }
};

TEST_F(TaskSwitchTest, jump_saves_the_old_task_and_loads_the_new) {
  u64 old_esp = state.gpr[kRsp];
  EXPECT_TRUE(succeeded(jump()));
  EXPECT_EQ(state.rip, kNewEip);
  EXPECT_EQ(state.gpr[kRax], 0xaaaau);
  EXPECT_EQ(state.gpr[kRsp], kNewEsp);
  EXPECT_EQ(state.tr.selector, kOtherTssSelector);
  EXPECT_EQ(state.tr.type, kTypeTss32Busy);
  EXPECT_EQ(read<u32>(kTss + 0x20), kNextRip);
  EXPECT_EQ(read<u32>(kTss + 0x28), 0x11111111u);
  EXPECT_EQ(read<u32>(kTss + 0x38), old_esp);
  EXPECT_EQ(read<u16>(kTss + 0x4c), kCode0);
  EXPECT_NE(state.cr0 & kCr0Ts, 0u);
}

TEST_F(TaskSwitchTest, jump_moves_the_busy_flag_and_does_not_nest) {
  EXPECT_TRUE(succeeded(jump()));
  EXPECT_EQ(gdt_access(kTssSelector), access_byte(kTypeTss32, 0, true));
  EXPECT_EQ(gdt_access(kOtherTssSelector), access_byte(kTypeTss32Busy, 0, true));
  EXPECT_EQ(state.rflags & kFlagNt, 0u);
  EXPECT_EQ(read<u16>(kOtherTss), 0);
}

TEST_F(TaskSwitchTest, call_nests_and_keeps_both_tasks_busy) {
  EXPECT_TRUE(succeeded(op_far_call(cpu, insn(4, 0, kOtherTssSelector))));
  EXPECT_EQ(gdt_access(kTssSelector), access_byte(kTypeTss32Busy, 0, true));
  EXPECT_EQ(gdt_access(kOtherTssSelector), access_byte(kTypeTss32Busy, 0, true));
  EXPECT_NE(state.rflags & kFlagNt, 0u);
  EXPECT_EQ(read<u16>(kOtherTss), kTssSelector);
}

TEST_F(TaskSwitchTest, iret_from_a_nested_task_returns_to_the_caller) {
  EXPECT_TRUE(succeeded(op_far_call(cpu, insn(4, 0, kOtherTssSelector))));
  state.rip = kNewEip + 2;
  EXPECT_TRUE(succeeded(op_iret(cpu, insn(4))));
  EXPECT_EQ(state.rip, kNextRip);
  EXPECT_EQ(state.gpr[kRax], 0x11111111u);
  EXPECT_EQ(state.tr.selector, kTssSelector);
  EXPECT_EQ(gdt_access(kOtherTssSelector), access_byte(kTypeTss32, 0, true));
  EXPECT_EQ(read<u32>(kOtherTss + 0x24) & kFlagNt, 0u);
  EXPECT_EQ(read<u32>(kOtherTss + 0x20), kNewEip + 2);
}

TEST_F(TaskSwitchTest, iret_to_a_task_that_is_not_busy_is_ts) {
  state.rflags |= kFlagNt;
  write<u16>(kTss, kOtherTssSelector);
  EXPECT_TRUE(faulted(op_iret(cpu, insn(4)), kVectorTs, kOtherTssSelector));
  EXPECT_EQ(state.tr.selector, kTssSelector);
}

TEST_F(TaskSwitchTest, jump_to_a_busy_task_is_gp) {
  EXPECT_TRUE(faulted(op_far_jmp(cpu, insn(4, 0, kTssSelector)), kVectorGp, kTssSelector));
}

TEST_F(TaskSwitchTest, jump_to_an_absent_task_is_np) {
  set_gdt(kOtherTssSelector, gdt_entry(kOtherTssSelector) & kNotPresentMask);
  EXPECT_TRUE(faulted(jump(), kVectorNp, kOtherTssSelector));
}

TEST_F(TaskSwitchTest, too_small_tss_is_ts_and_changes_nothing) {
  set_gdt(kOtherTssSelector, descriptor(kOtherTss, 0x66, access_byte(kTypeTss32, 0, true), 0));
  EXPECT_TRUE(faulted(jump(), kVectorTs, kOtherTssSelector));
  EXPECT_EQ(state.rip, kNextRip);
  EXPECT_EQ(read<u32>(kTss + 0x20), 0u);
}

TEST_F(TaskSwitchTest, jump_through_a_task_gate_switches) {
  EXPECT_TRUE(succeeded(op_far_jmp(cpu, insn(4, 0, kTaskGate))));
  EXPECT_EQ(state.tr.selector, kOtherTssSelector);
}

TEST_F(TaskSwitchTest, jump_from_ring_3_needs_the_gate) {
  start_protected(3);
  EXPECT_TRUE(faulted(jump(), kVectorGp, kOtherTssSelector));
  EXPECT_TRUE(succeeded(op_far_jmp(cpu, insn(4, 0, kTaskGate))));
  EXPECT_EQ(state.cpl, 0);
}

TEST_F(TaskSwitchTest, fault_through_a_task_gate_pushes_the_error_code_on_the_new_stack) {
  set_idt(kVectorGp, gate(kTypeTaskGate, kOtherTssSelector, 0, 0));
  EXPECT_TRUE(succeeded(deliver_fault(cpu, GuestStop::gp(0x58).fault)));
  EXPECT_EQ(state.gpr[kRsp], kNewEsp - 4);
  EXPECT_EQ(stack_item<u32>(0), 0x58u);
  EXPECT_NE(state.rflags & kFlagNt, 0u);
  EXPECT_EQ(read<u16>(kOtherTss), kTssSelector);
  EXPECT_NE(read<u32>(kTss + 0x24) & kFlagRf, 0u);
}

TEST_F(TaskSwitchTest, bad_segment_of_the_new_task_is_ts_in_the_new_task) {
  set_tss_segments(kCode0, kData3, kData0);
  set_idt(kVectorTs, gate(kTypeTaskGate, kSpare, 0, 0));
  set_gdt(kSpare, descriptor(0x3d00, 0x67, access_byte(kTypeTss32, 0, true), 0));
  write<u32>(0x3d00 + 0x20, 0x13000);
  write<u32>(0x3d00 + 0x38, kNewEsp);
  write<u32>(0x3d00 + 0x4c, kCode0);
  write<u32>(0x3d00 + 0x50, kData0);
  EXPECT_TRUE(succeeded(jump()));
  EXPECT_EQ(state.rip, 0x13000u);
  EXPECT_EQ(stack_item<u32>(0), kData3);
  EXPECT_EQ(read<u16>(0x3d00), kOtherTssSelector);
  EXPECT_EQ(read<u32>(kOtherTss + 0x20), kNewEip);
}

TEST_F(TaskSwitchTest, trap_flag_in_the_tss_raises_debug_exception) {
  write<u16>(kOtherTss + 0x64, 1);
  set_idt(kVectorDb, gate(kTypeInterruptGate32, kCode0, kHandler, 0));
  EXPECT_TRUE(succeeded(jump()));
  EXPECT_EQ(state.rip, kHandler);
  EXPECT_EQ(stack_item<u32>(0), kNewEip);
  EXPECT_EQ(state.dr6, u64{kDr6Fixed1 | kDr6Bt});
}

TEST_F(TaskSwitchTest, local_breakpoints_are_disabled) {
  state.dr7 = kDr7Fixed1 | 0x3ff;
  EXPECT_TRUE(succeeded(jump()));
  EXPECT_EQ(state.dr7, kDr7Fixed1 | 0x2aau);
}

TEST_F(TaskSwitchTest, task_in_v86_mode_gets_paragraph_segments) {
  write<u32>(kOtherTss + 0x24, kFlagFixed1 | kFlagVm | kFlagIopl);
  write<u32>(kOtherTss + 0x20, 0x100);
  set_tss_segments(0x1000, 0x2000, 0x3000);
  EXPECT_TRUE(succeeded(jump()));
  EXPECT_TRUE(state.v86_mode());
  EXPECT_EQ(state.cpl, 3);
  EXPECT_EQ(state.segments[kCs].base, 0x10000u);
  EXPECT_EQ(state.segments[kDs].base, 0x30000u);
}

TEST_F(TaskSwitchTest, new_task_loads_its_ldt) {
  write<u16>(kOtherTss + 0x60, kLdtSelector);
  EXPECT_TRUE(succeeded(jump()));
  EXPECT_EQ(state.ldtr.base, kLdt);
}

TEST_F(TaskSwitchTest, sixteen_bit_task_loads_words_and_null_fs_gs) {
  set_gdt(kOtherTssSelector, descriptor(kOtherTss, 0x2b, access_byte(kTypeTss16, 0, true), 0));
  write<u16>(kOtherTss + 0x0e, 0x1234);
  write<u16>(kOtherTss + 0x10, kFlagFixed1);
  write<u16>(kOtherTss + 0x12, 0x5678);
  write<u16>(kOtherTss + 0x1a, 0x8000);
  write<u16>(kOtherTss + 0x22, kData16);
  write<u16>(kOtherTss + 0x24, kCode16);
  write<u16>(kOtherTss + 0x26, kData16);
  write<u16>(kOtherTss + 0x28, kData16);
  write<u16>(kOtherTss + 0x2a, 0);
  EXPECT_TRUE(succeeded(jump()));
  EXPECT_EQ(state.rip, 0x1234u);
  EXPECT_EQ(state.gpr[kRax], 0x5678u);
  EXPECT_EQ(state.gpr[kRsp], 0x8000u);
  EXPECT_EQ(state.segments[kSs].base, 0x20000u);
  EXPECT_TRUE(state.segments[kFs].unusable);
  EXPECT_EQ(state.tr.type, kTypeTss16Busy);
}

TEST_F(TaskSwitchTest, long_mode_has_no_task_switch) {
  start_long();
  EXPECT_TRUE(faulted(jump(), kVectorGp, kOtherTssSelector));
  state.rflags |= kFlagNt;
  EXPECT_TRUE(faulted(op_iret(cpu, insn(8)), kVectorGp, 0));
}

}  // namespace
}  // namespace anykvm::x86
