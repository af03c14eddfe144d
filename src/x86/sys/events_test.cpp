#include "x86/sys/events.h"

#include "x86/sys/testing.h"

namespace anykvm::x86 {
namespace {

using namespace testing;

constexpr u8 kVector = 0x40;

class EventsTest : public SysTest {
 protected:
  static GuestFault gp_fault(u32 error) { return GuestStop::gp(error).fault; }
};

// --- Real mode ---

TEST_F(EventsTest, real_mode_interrupt_pushes_three_words_and_clears_if) {
  start_real();
  state.rflags |= kFlagIf | kFlagTf;
  write<u32>(kIdt + kVector * 4, 0x12340056);
  EXPECT_TRUE(succeeded(deliver_interrupt(cpu, kVector, EventKind::kExternal)));
  EXPECT_EQ(state.segments[kCs].base, 0x12340u);
  EXPECT_EQ(state.rip, 0x56u);
  EXPECT_EQ(state.gpr[kRsp], 0x7ffau);
  EXPECT_EQ(stack_item<u16>(0), 0x1002u);
  EXPECT_EQ(stack_item<u16>(1), 0u);
  EXPECT_EQ(stack_item<u16>(2), u64{kFlagFixed1 | kFlagIf | kFlagTf});
  EXPECT_EQ(state.rflags, u64{kFlagFixed1});
}

TEST_F(EventsTest, real_mode_fault_pushes_no_error_code) {
  start_real();
  write<u32>(kIdt + kVectorGp * 4, 0x00000077);
  EXPECT_TRUE(succeeded(deliver_fault(cpu, gp_fault(0))));
  EXPECT_EQ(state.rip, 0x77u);
  EXPECT_EQ(state.gpr[kRsp], 0x7ffau);
}

TEST_F(EventsTest, real_mode_stack_wraps_inside_the_frame) {
  start_real();
  state.gpr[kRsp] = 0xabcd0002;
  EXPECT_TRUE(succeeded(deliver_interrupt(cpu, kVector, EventKind::kExternal)));
  EXPECT_EQ(state.gpr[kRsp], 0xabcdfffcu);
  EXPECT_EQ(read<u16>(0x20000), u64{kFlagFixed1});
  EXPECT_EQ(read<u16>(0x2fffc), 0x1002u);
}

TEST_F(EventsTest, real_mode_vector_outside_the_table_ends_in_triple_fault) {
  start_real();
  state.idtr.limit = 3;
  EXPECT_TRUE(succeeded(deliver_interrupt(cpu, kVector, EventKind::kExternal)));
  EXPECT_TRUE(state.events.triple_fault);
}

// --- Protected mode ---

TEST_F(EventsTest, interrupt_gate_at_same_privilege_uses_the_current_stack) {
  start_protected();
  state.rflags |= kFlagIf | kFlagNt | kFlagRf;
  set_idt(kVector, gate(kTypeInterruptGate32, kCode0, kHandler, 0));
  u64 top = state.gpr[kRsp];
  EXPECT_TRUE(succeeded(deliver_interrupt(cpu, kVector, EventKind::kExternal)));
  EXPECT_EQ(state.rip, kHandler);
  EXPECT_EQ(state.gpr[kRsp], top - 12);
  EXPECT_EQ(stack_item<u32>(0), kNextRip);
  EXPECT_EQ(stack_item<u32>(1), kCode0);
  EXPECT_EQ(stack_item<u32>(2), u64{kFlagFixed1 | kFlagIf | kFlagNt | kFlagRf});
  EXPECT_EQ(state.rflags, u64{kFlagFixed1});
}

TEST_F(EventsTest, trap_gate_keeps_if) {
  start_protected();
  state.rflags |= kFlagIf | kFlagTf;
  set_idt(kVector, gate(kTypeTrapGate32, kCode0, kHandler, 0));
  EXPECT_TRUE(succeeded(deliver_interrupt(cpu, kVector, EventKind::kExternal)));
  EXPECT_EQ(state.rflags, u64{kFlagFixed1 | kFlagIf});
}

TEST_F(EventsTest, sixteen_bit_gate_pushes_words_and_truncates_the_offset) {
  start_protected();
  set_idt(kVector, gate(kTypeInterruptGate16, kCode0, 0xffff1234, 0));
  u64 top = state.gpr[kRsp];
  EXPECT_TRUE(succeeded(deliver_interrupt(cpu, kVector, EventKind::kExternal)));
  EXPECT_EQ(state.rip, 0x1234u);
  EXPECT_EQ(state.gpr[kRsp], top - 6);
}

TEST_F(EventsTest, fault_from_ring_3_switches_to_the_stack_in_the_tss) {
  start_protected(3);
  set_idt(kVectorGp, gate(kTypeInterruptGate32, kCode0, kHandler, 0));
  EXPECT_TRUE(succeeded(deliver_fault(cpu, gp_fault(0x1234))));
  EXPECT_EQ(state.cpl, 0);
  EXPECT_EQ(state.segments[kSs].selector, kData0);
  EXPECT_EQ(state.gpr[kRsp], kStack0 - 24u);
  EXPECT_EQ(stack_item<u32>(0), 0x1234u);
  EXPECT_EQ(stack_item<u32>(1), kNextRip);
  EXPECT_EQ(stack_item<u32>(2), kCode3 | 3u);
  EXPECT_EQ(stack_item<u32>(3), u64{kFlagFixed1 | kFlagRf});
  EXPECT_EQ(stack_item<u32>(4), kStack3);
  EXPECT_EQ(stack_item<u32>(5), kData3 | 3u);
}

TEST_F(EventsTest, sixteen_bit_tss_gives_a_sixteen_bit_stack_pointer) {
  start_protected(3);
  state.tr.type = kTypeTss16Busy;
  write<u16>(kTss + 2, 0x8000);
  write<u16>(kTss + 4, kData16);
  set_idt(kVector, gate(kTypeInterruptGate16, kCode0, 0x1234, 0));
  EXPECT_TRUE(succeeded(deliver_interrupt(cpu, kVector, EventKind::kExternal)));
  EXPECT_EQ(state.segments[kSs].selector, kData16);
  EXPECT_EQ(state.gpr[kRsp], 0x7ff6u);
  EXPECT_EQ(read<u16>(0x20000 + 0x7ff6), kNextRip & 0xffff);
}

TEST_F(EventsTest, conforming_handler_keeps_the_privilege) {
  start_protected(3);
  set_idt(kVector, gate(kTypeInterruptGate32, kConforming0, kHandler, 3));
  EXPECT_TRUE(succeeded(deliver_interrupt(cpu, kVector, EventKind::kSoftware)));
  EXPECT_EQ(state.cpl, 3);
  EXPECT_EQ(state.segments[kCs].selector, kConforming0 | 3);
}

TEST_F(EventsTest, delivery_ends_the_interrupt_shadow) {
  start_protected();
  state.events.shadow = kShadowMovSs;
  set_idt(kVector, gate(kTypeInterruptGate32, kCode0, kHandler, 0));
  EXPECT_TRUE(succeeded(deliver_interrupt(cpu, kVector, EventKind::kExternal)));
  EXPECT_EQ(state.events.shadow, 0);
}

// --- Virtual-8086 mode ---

TEST_F(EventsTest, v86_interrupt_pushes_nine_items_and_leaves_v86) {
  start_v86();
  state.segments[kGs].selector = 0x1111;
  set_idt(kVector, gate(kTypeInterruptGate32, kCode0, kHandler, 0));
  EXPECT_TRUE(succeeded(deliver_interrupt(cpu, kVector, EventKind::kExternal)));
  EXPECT_FALSE(state.v86_mode());
  EXPECT_EQ(state.cpl, 0);
  EXPECT_EQ(state.gpr[kRsp], kStack0 - 36u);
  EXPECT_EQ(stack_item<u32>(0), 2u);
  EXPECT_EQ(stack_item<u32>(1), 0x1000u);
  EXPECT_EQ(stack_item<u32>(2), u64{kFlagFixed1 | kFlagVm | kFlagIopl});
  EXPECT_EQ(stack_item<u32>(3), 0x8000u);
  EXPECT_EQ(stack_item<u32>(4), 0x3000u);
  EXPECT_EQ(stack_item<u32>(8), 0x1111u);
  EXPECT_TRUE(state.segments[kDs].unusable);
}

TEST_F(EventsTest, v86_interrupt_to_conforming_handler_faults) {
  start_v86();
  set_idt(kVector, gate(kTypeInterruptGate32, kConforming0, kHandler, 3));
  EXPECT_TRUE(faulted(raise_interrupt(cpu, kVector, EventKind::kSoftware), kVectorGp, kConforming0));
  EXPECT_TRUE(state.v86_mode());
}

// --- Error codes ---

TEST_F(EventsTest, vector_outside_the_table_faults_with_idt_bit) {
  start_protected();
  state.idtr.limit = kVector * 8 + 6;
  EXPECT_TRUE(faulted(raise_interrupt(cpu, kVector, EventKind::kSoftware), kVectorGp, kVector * 8 + 2));
}

TEST_F(EventsTest, wrong_gate_type_faults_with_idt_bit) {
  start_protected();
  set_idt(kVector, gate(kTypeCallGate32, kCode0, kHandler, 0));
  EXPECT_TRUE(faulted(raise_interrupt(cpu, kVector, EventKind::kSoftware), kVectorGp, kVector * 8 + 2));
}

TEST_F(EventsTest, absent_gate_is_np) {
  start_protected();
  set_idt(kVector, gate(kTypeInterruptGate32, kCode0, kHandler, 0) & kNotPresentMask);
  EXPECT_TRUE(faulted(raise_interrupt(cpu, kVector, EventKind::kSoftware), kVectorNp, kVector * 8 + 2));
}

TEST_F(EventsTest, software_interrupt_needs_gate_dpl_and_external_does_not) {
  start_protected(3);
  set_idt(kVector, gate(kTypeInterruptGate32, kCode0, kHandler, 0));
  EXPECT_TRUE(faulted(raise_interrupt(cpu, kVector, EventKind::kSoftware), kVectorGp, kVector * 8 + 2));
  EXPECT_TRUE(succeeded(deliver_interrupt(cpu, kVector, EventKind::kExternal)));
  EXPECT_EQ(state.cpl, 0);
}

TEST_F(EventsTest, int3_checks_gate_dpl_and_int1_does_not) {
  start_protected(3);
  set_idt(kVectorBp, gate(kTypeInterruptGate32, kCode0, kHandler, 0));
  set_idt(kVectorDb, gate(kTypeInterruptGate32, kCode0, kHandler, 0));
  EXPECT_TRUE(faulted(op_int3(cpu, insn(4)), kVectorGp, kVectorBp * 8 + 2));
  EXPECT_TRUE(succeeded(op_int1(cpu, insn(4))));
  EXPECT_EQ(state.rip, kHandler);
}

TEST_F(EventsTest, fault_while_delivering_an_external_interrupt_carries_ext) {
  start_protected();
  set_idt(kVector, gate(kTypeInterruptGate32, kAbsentData, kHandler, 0));
  set_idt(kVectorGp, gate(kTypeInterruptGate32, kCode0, kHandler, 0));
  EXPECT_TRUE(succeeded(deliver_interrupt(cpu, kVector, EventKind::kExternal)));
  EXPECT_EQ(stack_item<u32>(0), kAbsentData | 1u);
}

TEST_F(EventsTest, null_handler_selector_is_gp_with_ext_only) {
  start_protected();
  set_idt(kVector, gate(kTypeInterruptGate32, 0, kHandler, 0));
  set_idt(kVectorGp, gate(kTypeInterruptGate32, kCode0, kHandler, 0));
  EXPECT_TRUE(succeeded(deliver_interrupt(cpu, kVector, EventKind::kExternal)));
  EXPECT_EQ(stack_item<u32>(0), 1u);
}

TEST_F(EventsTest, bad_inner_stack_is_ts_with_its_selector) {
  start_protected(3);
  write<u32>(kTss + 8, kData3 | 3);
  set_idt(kVector, gate(kTypeInterruptGate32, kCode0, kHandler, 3));
  EXPECT_TRUE(faulted(raise_interrupt(cpu, kVector, EventKind::kSoftware), kVectorTs, kData3));
}

TEST_F(EventsTest, inner_stack_outside_the_tss_is_ts_with_the_tss) {
  start_protected(3);
  state.tr.limit = 8;
  set_idt(kVector, gate(kTypeInterruptGate32, kCode0, kHandler, 3));
  EXPECT_TRUE(faulted(raise_interrupt(cpu, kVector, EventKind::kSoftware), kVectorTs, kTssSelector));
}

TEST_F(EventsTest, inner_stack_without_room_is_ss_with_its_selector) {
  start_protected(3);
  set_gdt(kSpare, descriptor(0, 0xfff, access_byte(kTypeData, 0), kBig));
  write<u32>(kTss + 8, kSpare);
  set_idt(kVector, gate(kTypeInterruptGate32, kCode0, kHandler, 3));
  EXPECT_TRUE(faulted(raise_interrupt(cpu, kVector, EventKind::kSoftware), kVectorSs, kSpare));
  EXPECT_EQ(state.gpr[kRsp], kStack3);
  EXPECT_EQ(state.cpl, 3);
}

TEST_F(EventsTest, handler_outside_its_segment_is_gp_0) {
  start_protected();
  set_gdt(kSpare, descriptor(0, 0xff, access_byte(kTypeCode, 0), kBig));
  set_idt(kVector, gate(kTypeInterruptGate32, kSpare, 0x100, 0));
  EXPECT_TRUE(faulted(raise_interrupt(cpu, kVector, EventKind::kSoftware), kVectorGp, 0));
}

// --- Double and triple faults ---

TEST_F(EventsTest, contributory_after_contributory_is_double_fault) {
  start_protected();
  set_idt(kVectorGp, gate(kTypeInterruptGate32, kCode0, kHandler, 0) & kNotPresentMask);
  set_idt(kVectorDf, gate(kTypeInterruptGate32, kCode0, kHandler + 0x80, 0));
  EXPECT_TRUE(succeeded(deliver_fault(cpu, gp_fault(0x50))));
  EXPECT_EQ(state.rip, kHandler + 0x80u);
  EXPECT_EQ(stack_item<u32>(0), 0u);
  EXPECT_EQ(stack_item<u32>(1), kNextRip);
}

TEST_F(EventsTest, missing_gates_all_the_way_end_in_triple_fault) {
  start_protected();
  EXPECT_TRUE(succeeded(deliver_fault(cpu, GuestStop::ud().fault)));
  // #UD has no gate (type 0): #GP, whose gate is missing too: #DF, missing as well.
  EXPECT_TRUE(state.events.triple_fault);
}

TEST_F(EventsTest, benign_then_absent_gate_delivers_np) {
  start_protected();
  set_idt(kVectorUd, gate(kTypeInterruptGate32, kCode0, kHandler, 0) & kNotPresentMask);
  set_idt(kVectorNp, gate(kTypeInterruptGate32, kCode0, kHandler, 0));
  EXPECT_TRUE(succeeded(deliver_fault(cpu, GuestStop::ud().fault)));
  EXPECT_FALSE(state.events.triple_fault);
  EXPECT_EQ(stack_item<u32>(0), kVectorUd * 8u + 3u);
}

TEST_F(EventsTest, page_fault_then_contributory_is_double_fault) {
  start_protected();
  set_idt(kVectorPf, gate(kTypeInterruptGate32, kCode0, kHandler, 0) & kNotPresentMask);
  set_idt(kVectorNp, gate(kTypeInterruptGate32, kCode0, kHandler, 0));
  set_idt(kVectorDf, gate(kTypeInterruptGate32, kCode0, kHandler + 0x80, 0));
  EXPECT_TRUE(succeeded(deliver_fault(cpu, GuestStop::pf(2, Gva(0x1234)).fault)));
  EXPECT_EQ(state.rip, kHandler + 0x80u);
  EXPECT_EQ(state.cr2, 0x1234u);
}

TEST_F(EventsTest, fault_during_double_fault_is_triple_fault_and_keeps_the_state) {
  start_protected();
  state.idtr.limit = 7;
  u64 top = state.gpr[kRsp];
  EXPECT_TRUE(succeeded(deliver_fault(cpu, gp_fault(0))));
  EXPECT_TRUE(state.events.triple_fault);
  EXPECT_EQ(state.rip, kNextRip);
  EXPECT_EQ(state.gpr[kRsp], top);
  EXPECT_EQ(state.mp_state, MpState::kRunnable);
}

// --- Payloads and RF ---

TEST_F(EventsTest, page_fault_loads_cr2) {
  start_protected();
  set_idt(kVectorPf, gate(kTypeInterruptGate32, kCode0, kHandler, 0));
  EXPECT_TRUE(succeeded(deliver_fault(cpu, GuestStop::pf(6, Gva(0xdeadb000)).fault)));
  EXPECT_EQ(state.cr2, 0xdeadb000u);
  EXPECT_EQ(stack_item<u32>(0), 6u);
}

TEST_F(EventsTest, single_step_sets_bs_and_pushes_flags_without_rf) {
  start_protected();
  set_idt(kVectorDb, gate(kTypeInterruptGate32, kCode0, kHandler, 0));
  EXPECT_TRUE(succeeded(deliver_fault(cpu, GuestStop::db(kDr6Bs).fault)));
  EXPECT_EQ(state.dr6, u64{kDr6Fixed1 | kDr6Bs});
  EXPECT_EQ(stack_item<u32>(2) & kFlagRf, 0u);
}

TEST_F(EventsTest, general_detect_clears_gd_and_sets_rf_in_the_image) {
  start_protected();
  state.dr7 |= kDr7Gd;
  state.dr6 |= 2;
  set_idt(kVectorDb, gate(kTypeInterruptGate32, kCode0, kHandler, 0));
  EXPECT_TRUE(succeeded(deliver_fault(cpu, GuestStop::db(kDr6Bd).fault)));
  EXPECT_EQ(state.dr6, u64{kDr6Fixed1 | kDr6Bd});
  EXPECT_EQ(state.dr7 & kDr7Gd, 0u);
  EXPECT_NE(stack_item<u32>(2) & kFlagRf, 0u);
}

// --- Long mode ---

TEST_F(EventsTest, long_mode_always_pushes_ss_and_rsp_on_an_aligned_stack) {
  start_long();
  state.gpr[kRsp] = kStack0 - 0x4000 - 8;
  set_idt64(kVector, gate(kTypeInterruptGate32, kCode64Ring0, kHandler, 0));
  EXPECT_TRUE(succeeded(deliver_interrupt(cpu, kVector, EventKind::kExternal)));
  EXPECT_EQ(state.gpr[kRsp], kStack0 - 0x4000u - 16 - 40);
  EXPECT_EQ(stack_item<u64>(0), kNextRip);
  EXPECT_EQ(stack_item<u64>(1), kCode64Ring0);
  EXPECT_EQ(stack_item<u64>(3), kStack0 - 0x4000u - 8);
  EXPECT_EQ(stack_item<u64>(4), kData0);
  EXPECT_EQ(state.segments[kSs].selector, kData0);
}

TEST_F(EventsTest, long_mode_from_ring_3_takes_rsp0_and_a_null_ss) {
  start_long(3);
  set_idt64(kVectorGp, gate(kTypeInterruptGate32, kCode64Ring0, kHandler, 0));
  EXPECT_TRUE(succeeded(deliver_fault(cpu, gp_fault(0x18))));
  EXPECT_EQ(state.cpl, 0);
  EXPECT_EQ(state.gpr[kRsp], kStack0 - 48u);
  EXPECT_EQ(stack_item<u64>(0), 0x18u);
  EXPECT_EQ(stack_item<u64>(4), kStack3);
  EXPECT_EQ(stack_item<u64>(5), kData3 | 3u);
  EXPECT_EQ(state.segments[kSs].selector, 0);
  EXPECT_TRUE(state.segments[kSs].unusable);
}

TEST_F(EventsTest, long_mode_ist_switches_stacks_without_privilege_change) {
  start_long();
  set_idt64(kVector, gate(kTypeInterruptGate32, kCode64Ring0, kHandler, 0, 1));
  EXPECT_TRUE(succeeded(deliver_interrupt(cpu, kVector, EventKind::kExternal)));
  EXPECT_EQ(state.gpr[kRsp], kIstStack - 40u);
  EXPECT_EQ(state.segments[kSs].selector, kData0);
}

TEST_F(EventsTest, long_mode_from_compatibility_mode_enters_64_bit_code) {
  start_compatibility(3);
  set_idt64(kVector, gate(kTypeTrapGate32, kCode64Ring0, kHandler, 3));
  EXPECT_TRUE(succeeded(raise_interrupt(cpu, kVector, EventKind::kSoftware)));
  EXPECT_TRUE(state.code64());
  EXPECT_EQ(stack_item<u64>(1), kCode3 | 3u);
}

TEST_F(EventsTest, long_mode_handler_must_be_64_bit_code) {
  start_long();
  set_idt64(kVector, gate(kTypeInterruptGate32, kCode0, kHandler, 0));
  EXPECT_TRUE(faulted(raise_interrupt(cpu, kVector, EventKind::kSoftware), kVectorGp, kCode0));
}

TEST_F(EventsTest, long_mode_has_no_16_bit_or_task_gates) {
  start_long();
  set_idt64(kVector, gate(kTypeInterruptGate16, kCode64Ring0, kHandler, 0));
  EXPECT_TRUE(faulted(raise_interrupt(cpu, kVector, EventKind::kSoftware), kVectorGp, kVector * 8 + 2));
  set_idt64(kVector, gate(kTypeTaskGate, kOtherTssSelector, 0, 0));
  EXPECT_TRUE(faulted(raise_interrupt(cpu, kVector, EventKind::kSoftware), kVectorGp, kVector * 8 + 2));
}

TEST_F(EventsTest, long_mode_non_canonical_handler_is_gp_0) {
  start_long();
  set_idt64(kVector, gate(kTypeInterruptGate32, kCode64Ring0, kHandler, 0), 0x8000);
  EXPECT_TRUE(faulted(raise_interrupt(cpu, kVector, EventKind::kSoftware), kVectorGp, 0));
}

TEST_F(EventsTest, long_mode_non_canonical_stack_is_ss_0_and_changes_nothing) {
  start_long(3);
  write<u64>(kTss + 4, bit(60));
  set_idt64(kVector, gate(kTypeInterruptGate32, kCode64Ring0, kHandler, 3));
  EXPECT_TRUE(faulted(raise_interrupt(cpu, kVector, EventKind::kSoftware), kVectorSs, 0));
  EXPECT_EQ(state.cpl, 3);
  EXPECT_EQ(state.gpr[kRsp], kStack3);
}

TEST_F(EventsTest, long_mode_stack_that_runs_into_an_absent_page_is_pf_and_changes_nothing) {
  start_long();
  write<u64>(kPageTables + 0x2000 + 8, 0);  // 2 to 4 MiB
  state.gpr[kRsp] = 0x200010;
  set_idt64(kVector, gate(kTypeInterruptGate32, kCode64Ring0, kHandler, 0));
  EXPECT_TRUE(faulted(raise_interrupt(cpu, kVector, EventKind::kSoftware), kVectorPf, kPfWrite));
  EXPECT_EQ(state.gpr[kRsp], 0x200010u);
  EXPECT_EQ(state.rip, kNextRip);
}

TEST_F(EventsTest, long_mode_page_fault_without_a_stack_is_double_fault_on_its_ist) {
  start_long();
  write<u64>(kPageTables + 0x2000 + 8, 0);
  state.gpr[kRsp] = 0x300000;
  set_idt64(kVectorPf, gate(kTypeInterruptGate32, kCode64Ring0, kHandler, 0));
  set_idt64(kVectorDf, gate(kTypeInterruptGate32, kCode64Ring0, kHandler + 0x80, 0, 1));
  EXPECT_TRUE(succeeded(deliver_fault(cpu, GuestStop::pf(0, Gva(0x5000)).fault)));
  EXPECT_EQ(state.rip, kHandler + 0x80u);
  EXPECT_EQ(state.gpr[kRsp], kIstStack - 48u);
  EXPECT_EQ(stack_item<u64>(0), 0u);
  EXPECT_EQ(state.cr2, 0x2ffff8u);  // the first push
}

// --- Injection ---

TEST_F(EventsTest, injected_nmi_masks_nmis_until_iret) {
  start_long();
  state.events.nmi.injected = true;
  set_idt64(kVectorNmi, gate(kTypeInterruptGate32, kCode64Ring0, kHandler, 0));
  EXPECT_TRUE(succeeded(deliver_injected(cpu)));
  EXPECT_FALSE(state.events.nmi.injected);
  EXPECT_TRUE(state.events.nmi.masked);
  EXPECT_TRUE(succeeded(op_iret(cpu, insn(8))));
  EXPECT_FALSE(state.events.nmi.masked);
}

TEST_F(EventsTest, injected_exception_goes_before_an_injected_interrupt) {
  start_long();
  state.events.exception = {.injected = true,
                            .has_error = true,
                            .has_payload = true,
                            .vector = kVectorPf,
                            .error = 4,
                            .payload = 0x5000};
  state.events.interrupt.injected = true;
  state.events.interrupt.vector = kVector;
  set_idt64(kVectorPf, gate(kTypeInterruptGate32, kCode64Ring0, kHandler, 0));
  EXPECT_TRUE(succeeded(deliver_injected(cpu)));
  EXPECT_EQ(state.cr2, 0x5000u);
  EXPECT_EQ(stack_item<u64>(0), 4u);
  EXPECT_FALSE(state.events.exception.injected);
  EXPECT_TRUE(state.events.interrupt.injected);
}

TEST_F(EventsTest, injected_interrupt_is_delivered_once) {
  start_long();
  state.events.interrupt = {.injected = true, .soft = false, .vector = kVector};
  set_idt64(kVector, gate(kTypeInterruptGate32, kCode64Ring0, kHandler, 0));
  EXPECT_TRUE(succeeded(deliver_injected(cpu)));
  EXPECT_EQ(state.rip, kHandler);
  EXPECT_FALSE(state.events.interrupt.injected);
}

}  // namespace
}  // namespace anykvm::x86
