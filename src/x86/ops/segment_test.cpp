#include "x86/sys/segments.h"

#include "x86/sys/testing.h"

namespace anykvm::x86 {
namespace {

using namespace testing;

class SegmentOpsTest : public SysTest {
 protected:
  // Register forms: `rm` is RCX, `reg` is RAX.
  static Insn registers(u8 size) {
    Insn result = insn(size);
    result.has_modrm = true;
    result.reg = kRax;
    result.rm = kRcx;
    return result;
  }
};

// --- LGDT, SGDT, UMIP ---

TEST_F(SegmentOpsTest, lgdt_reads_ten_bytes_in_64_bit_mode) {
  start_long();
  write<u16>(kData, 0x7f);
  write<u64>(kData + 2, 0xffff800000001000);
  EXPECT_TRUE(succeeded(op_lgdt(cpu, memory_insn(8, kData))));
  EXPECT_EQ(state.gdtr.limit, 0x7f);
  EXPECT_EQ(state.gdtr.base, 0xffff800000001000u);
}

TEST_F(SegmentOpsTest, lgdt_with_non_canonical_base_is_gp_and_changes_nothing) {
  start_long();
  write<u64>(kData + 2, bit(47));
  EXPECT_TRUE(faulted(op_lgdt(cpu, memory_insn(8, kData)), kVectorGp, 0));
  EXPECT_EQ(state.gdtr.base, kGdt);
}

TEST_F(SegmentOpsTest, lidt_with_16_bit_operands_takes_24_bits_of_base) {
  start_protected();
  write<u16>(kData, 0x3ff);
  write<u32>(kData + 2, 0xff123456);
  EXPECT_TRUE(succeeded(op_lidt(cpu, memory_insn(2, kData))));
  EXPECT_EQ(state.idtr.base, 0x123456u);
  EXPECT_EQ(state.idtr.limit, 0x3ff);
}

TEST_F(SegmentOpsTest, sgdt_stores_limit_and_base) {
  start_protected();
  EXPECT_TRUE(succeeded(op_sgdt(cpu, memory_insn(4, kData))));
  EXPECT_EQ(read<u16>(kData), kGdtEnd - 1);
  EXPECT_EQ(read<u32>(kData + 2), kGdt);
}

TEST_F(SegmentOpsTest, umip_forbids_the_five_instructions_at_ring_3) {
  start_protected(3);
  state.cr4 |= kCr4Umip;
  EXPECT_TRUE(faulted(op_sgdt(cpu, memory_insn(4, kData)), kVectorGp, 0));
  EXPECT_TRUE(faulted(op_sidt(cpu, memory_insn(4, kData)), kVectorGp, 0));
  EXPECT_TRUE(faulted(op_sldt(cpu, registers(4)), kVectorGp, 0));
  EXPECT_TRUE(faulted(op_str(cpu, registers(4)), kVectorGp, 0));
  EXPECT_TRUE(faulted(op_smsw(cpu, registers(4)), kVectorGp, 0));
}

TEST_F(SegmentOpsTest, umip_does_not_concern_ring_0) {
  start_protected(0);
  state.cr4 |= kCr4Umip;
  EXPECT_TRUE(succeeded(op_sgdt(cpu, memory_insn(4, kData))));
  EXPECT_TRUE(succeeded(op_smsw(cpu, registers(4))));
}

TEST_F(SegmentOpsTest, smsw_and_str_write_16_bits_to_memory_and_the_operand_size_to_registers) {
  start_protected();
  write<u32>(kData, 0xffffffff);
  state.gpr[kRcx] = ~u64{0};
  EXPECT_TRUE(succeeded(op_str(cpu, memory_insn(4, kData))));
  EXPECT_EQ(read<u32>(kData), 0xffff0000u | kTssSelector);
  EXPECT_TRUE(succeeded(op_smsw(cpu, registers(4))));
  EXPECT_EQ(state.gpr[kRcx], state.cr0);
}

// --- LLDT, LTR ---

TEST_F(SegmentOpsTest, lldt_loads_and_null_makes_it_unusable) {
  start_protected();
  state.gpr[kRcx] = kLdtSelector;
  EXPECT_TRUE(succeeded(op_lldt(cpu, registers(2))));
  EXPECT_EQ(state.ldtr.base, kLdt);
  state.gpr[kRcx] = 0;
  EXPECT_TRUE(succeeded(op_lldt(cpu, registers(2))));
  EXPECT_TRUE(state.ldtr.unusable);
}

TEST_F(SegmentOpsTest, lldt_of_other_types_or_from_the_ldt_is_gp) {
  start_protected();
  state.gpr[kRcx] = kData0;
  EXPECT_TRUE(faulted(op_lldt(cpu, registers(2)), kVectorGp, kData0));
  state.gpr[kRcx] = 4;
  EXPECT_TRUE(faulted(op_lldt(cpu, registers(2)), kVectorGp, 4));
}

TEST_F(SegmentOpsTest, ltr_sets_busy_in_memory_and_a_busy_tss_is_gp) {
  start_protected();
  state.gpr[kRcx] = kOtherTssSelector;
  EXPECT_TRUE(succeeded(op_ltr(cpu, registers(2))));
  EXPECT_EQ(gdt_access(kOtherTssSelector), access_byte(kTypeTss32Busy, 0, true));
  EXPECT_EQ(state.tr.base, kOtherTss);
  EXPECT_EQ(state.tr.type, kTypeTss32Busy);
  EXPECT_TRUE(faulted(op_ltr(cpu, registers(2)), kVectorGp, kOtherTssSelector));
}

TEST_F(SegmentOpsTest, ltr_in_long_mode_takes_a_64_bit_base) {
  start_long();
  set_gdt16(kTssSelector, descriptor(kTss, 0x67, access_byte(kTypeTss32, 0, true), 0), 0xffff8000);
  state.gpr[kRcx] = kTssSelector;
  EXPECT_TRUE(succeeded(op_ltr(cpu, registers(2))));
  EXPECT_EQ(state.tr.base, 0xffff800000000000 + kTss);
}

TEST_F(SegmentOpsTest, ltr_of_null_and_of_absent_tss_fault) {
  start_protected();
  state.gpr[kRcx] = 0;
  EXPECT_TRUE(faulted(op_ltr(cpu, registers(2)), kVectorGp, 0));
  set_gdt(kOtherTssSelector, gdt_entry(kOtherTssSelector) & kNotPresentMask);
  state.gpr[kRcx] = kOtherTssSelector;
  EXPECT_TRUE(faulted(op_ltr(cpu, registers(2)), kVectorNp, kOtherTssSelector));
}

// --- LAR, LSL, VERR, VERW, ARPL ---

TEST_F(SegmentOpsTest, lar_gives_rights_and_zf) {
  start_protected();
  state.gpr[kRcx] = kCode0;
  EXPECT_TRUE(succeeded(op_lar(cpu, registers(4))));
  EXPECT_EQ(state.gpr[kRax], 0x00cf9b00u);
  EXPECT_NE(state.rflags & kFlagZf, 0u);
}

TEST_F(SegmentOpsTest, lar_of_hidden_or_missing_descriptor_clears_zf_and_keeps_the_register) {
  start_protected(3);
  state.rflags |= kFlagZf;
  state.gpr[kRax] = 5;
  state.gpr[kRcx] = kCode0;
  EXPECT_TRUE(succeeded(op_lar(cpu, registers(4))));
  EXPECT_EQ(state.rflags & kFlagZf, 0u);
  EXPECT_EQ(state.gpr[kRax], 5u);
  state.rflags |= kFlagZf;
  state.gpr[kRcx] = 0x1003;
  EXPECT_TRUE(succeeded(op_lar(cpu, registers(4))));
  EXPECT_EQ(state.rflags & kFlagZf, 0u);
}

TEST_F(SegmentOpsTest, lsl_scales_the_limit) {
  start_protected();
  state.gpr[kRcx] = kCode0;
  EXPECT_TRUE(succeeded(op_lsl(cpu, registers(4))));
  EXPECT_EQ(state.gpr[kRax], 0xffffffffu);
}

TEST_F(SegmentOpsTest, lsl_knows_no_gates) {
  start_protected();
  set_gdt(kCallGate, gate(kTypeCallGate32, kCode0, kHandler, 0));
  state.gpr[kRcx] = kCallGate;
  state.rflags |= kFlagZf;
  EXPECT_TRUE(succeeded(op_lsl(cpu, registers(4))));
  EXPECT_EQ(state.rflags & kFlagZf, 0u);
}

TEST_F(SegmentOpsTest, verr_and_verw_look_at_type_and_privilege) {
  start_protected();
  set_gdt(kSpare, flat(kTypeReadOnly, 0, kBig));
  state.gpr[kRcx] = kSpare;
  EXPECT_TRUE(succeeded(op_verr(cpu, registers(2))));
  EXPECT_NE(state.rflags & kFlagZf, 0u);
  EXPECT_TRUE(succeeded(op_verw(cpu, registers(2))));
  EXPECT_EQ(state.rflags & kFlagZf, 0u);
}

TEST_F(SegmentOpsTest, arpl_raises_the_rpl) {
  start_protected();
  state.gpr[kRcx] = 0x11;
  state.gpr[kRax] = 3;
  EXPECT_TRUE(succeeded(op_arpl(cpu, registers(2))));
  EXPECT_EQ(state.gpr[kRcx], 0x13u);
  EXPECT_NE(state.rflags & kFlagZf, 0u);
  EXPECT_TRUE(succeeded(op_arpl(cpu, registers(2))));
  EXPECT_EQ(state.rflags & kFlagZf, 0u);
}

// --- Bases ---

TEST_F(SegmentOpsTest, swapgs_exchanges_the_bases) {
  start_long();
  state.msrs.kernel_gs_base = 0x1000;
  state.segments[kGs].base = 0x2000;
  EXPECT_TRUE(succeeded(op_swapgs(cpu, insn(8))));
  EXPECT_EQ(state.segments[kGs].base, 0x1000u);
  EXPECT_EQ(state.msrs.kernel_gs_base, 0x2000u);
}

TEST_F(SegmentOpsTest, wrfsbase_needs_cr4_and_a_canonical_base) {
  start_long(3);
  state.gpr[kRcx] = 0x7f0000001000;
  EXPECT_TRUE(faulted(op_wrfsbase(cpu, registers(8)), kVectorUd));
  state.cr4 |= kCr4Fsgsbase;
  EXPECT_TRUE(succeeded(op_wrfsbase(cpu, registers(8))));
  EXPECT_EQ(state.segments[kFs].base, 0x7f0000001000u);
  state.gpr[kRcx] = bit(47);
  EXPECT_TRUE(faulted(op_wrfsbase(cpu, registers(8)), kVectorGp, 0));
}

TEST_F(SegmentOpsTest, rdgsbase_32_zero_extends) {
  start_long(3);
  state.cr4 |= kCr4Fsgsbase;
  state.segments[kGs].base = 0x7f0012345678;
  EXPECT_TRUE(succeeded(op_rdgsbase(cpu, registers(4))));
  EXPECT_EQ(state.gpr[kRcx], 0x12345678u);
}

// --- LES and its like ---

TEST_F(SegmentOpsTest, les_loads_segment_and_register) {
  start_protected();
  write<u32>(kData, 0x12345678);
  write<u16>(kData + 4, kData3);
  Insn les = memory_insn(4, kData);
  les.opcode = 0xc4;
  les.reg = kRdi;
  EXPECT_TRUE(succeeded(op_load_far_pointer(cpu, les)));
  EXPECT_EQ(state.gpr[kRdi], 0x12345678u);
  EXPECT_EQ(state.segments[kEs].selector, kData3);
}

TEST_F(SegmentOpsTest, lss_with_a_bad_selector_changes_nothing) {
  start_protected();
  write<u32>(kData, 0x12345678);
  write<u16>(kData + 4, kCode0);
  Insn lss = memory_insn(4, kData);
  lss.opcode = 0xb2;
  lss.reg = kRsp;
  u64 top = state.gpr[kRsp];
  EXPECT_TRUE(faulted(op_load_far_pointer(cpu, lss), kVectorGp, kCode0));
  EXPECT_EQ(state.gpr[kRsp], top);
}

}  // namespace
}  // namespace anykvm::x86
