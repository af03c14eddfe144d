#include "x86/sys/testing.h"

namespace anykvm::x86 {
namespace {

using namespace testing;

class SyscallTest : public SysTest {
 protected:
  SyscallTest() {
    state.msrs.star = u64{0x1b} << 48 | u64{0x08} << 32 | 0x5000;
    state.msrs.lstar = 0xffffffff81000000;
    state.msrs.cstar = 0xffffffff82000000;
    state.msrs.sfmask = kFlagIf | kFlagTf;
    state.msrs.sysenter_cs = 0x08;
    state.msrs.sysenter_esp = 0xffff800000001000;
    state.msrs.sysenter_eip = 0xffff800000002000;
  }
  // "GenuineIntel" and "AuthenticAMD" in EBX, EDX, ECX of leaf 0.
  void be_intel() { set_vendor(0x756e6547, 0x49656e69, 0x6c65746e); }
  void be_amd() { set_vendor(0x68747541, 0x69746e65, 0x444d4163); }

 private:
  void set_vendor(u32 ebx, u32 edx, u32 ecx) {
    cpu.model().set_entries(
        {CpuidEntry{.function = 0, .eax = 1, .ebx = ebx, .ecx = ecx, .edx = edx}, CpuidEntry{.function = 1}});
  }
};

TEST_F(SyscallTest, syscall_saves_rip_and_flags_and_enters_ring_0) {
  be_intel();
  start_long(3);
  state.rflags |= kFlagIf | kFlagCf;
  EXPECT_TRUE(succeeded(op_syscall(cpu, insn(4))));
  EXPECT_EQ(state.gpr[kRcx], kNextRip);
  EXPECT_EQ(state.gpr[kR11], u64{kFlagFixed1 | kFlagIf | kFlagCf});
  EXPECT_EQ(state.rip, 0xffffffff81000000u);
  EXPECT_EQ(state.rflags, u64{kFlagFixed1 | kFlagCf});
  EXPECT_EQ(state.cpl, 0);
  EXPECT_EQ(state.segments[kCs].selector, 0x08);
  EXPECT_EQ(state.segments[kSs].selector, 0x10);
  EXPECT_TRUE(state.code64());
}

TEST_F(SyscallTest, syscall_without_sce_is_ud) {
  start_long(3);
  state.efer &= ~u64{kEferSce};
  EXPECT_TRUE(faulted(op_syscall(cpu, insn(4)), kVectorUd));
}

TEST_F(SyscallTest, syscall_from_compatibility_mode_is_ud_on_intel_and_uses_cstar_on_amd) {
  be_intel();
  start_compatibility(3);
  EXPECT_TRUE(faulted(op_syscall(cpu, insn(4)), kVectorUd));
  be_amd();
  EXPECT_TRUE(succeeded(op_syscall(cpu, insn(4))));
  EXPECT_EQ(state.rip, 0xffffffff82000000u);
  EXPECT_TRUE(state.code64());
}

TEST_F(SyscallTest, syscall_in_legacy_mode_on_amd_uses_star) {
  be_amd();
  start_protected(3);
  state.efer |= kEferSce;
  state.rflags |= kFlagIf;
  EXPECT_TRUE(succeeded(op_syscall(cpu, insn(4))));
  EXPECT_EQ(state.rip, 0x5000u);
  EXPECT_EQ(state.gpr[kRcx], kNextRip);
  EXPECT_EQ(state.code_bits(), 32u);
  EXPECT_EQ(state.rflags & kFlagIf, 0u);
}

TEST_F(SyscallTest, sysret_64_returns_to_ring_3) {
  be_intel();
  start_long();
  state.gpr[kRcx] = 0x401000;
  state.gpr[kR11] = kFlagIf | kFlagRf | kFlagVm | kFlagAc;
  EXPECT_TRUE(succeeded(op_sysret(cpu, insn(8))));
  EXPECT_EQ(state.rip, 0x401000u);
  EXPECT_EQ(state.cpl, 3);
  EXPECT_EQ(state.rflags, u64{kFlagFixed1 | kFlagIf | kFlagAc});
  EXPECT_EQ(state.segments[kCs].selector, 0x2b);
  EXPECT_EQ(state.segments[kSs].selector, 0x23);
  EXPECT_TRUE(state.code64());
}

TEST_F(SyscallTest, sysret_32_returns_to_compatibility_mode) {
  be_intel();
  start_long();
  state.gpr[kRcx] = 0xffffffff00401000;
  EXPECT_TRUE(succeeded(op_sysret(cpu, insn(4))));
  EXPECT_EQ(state.rip, 0x00401000u);
  EXPECT_EQ(state.segments[kCs].selector, 0x1b);
  EXPECT_EQ(state.code_bits(), 32u);
}

TEST_F(SyscallTest, sysret_to_non_canonical_rip_is_gp_on_intel_only) {
  be_intel();
  start_long();
  state.gpr[kRcx] = bit(47);
  EXPECT_TRUE(faulted(op_sysret(cpu, insn(8)), kVectorGp, 0));
  be_amd();
  EXPECT_TRUE(succeeded(op_sysret(cpu, insn(8))));
  EXPECT_EQ(state.cpl, 3);
}

TEST_F(SyscallTest, sysret_on_amd_keeps_the_hidden_part_of_ss) {
  be_amd();
  start_long();
  state.segments[kSs] = {};
  state.segments[kSs].unusable = 1;
  EXPECT_TRUE(succeeded(op_sysret(cpu, insn(8))));
  EXPECT_EQ(state.segments[kSs].selector, 0x23);
  EXPECT_TRUE(state.segments[kSs].unusable);
}

TEST_F(SyscallTest, sysret_at_ring_3_is_gp) {
  be_intel();
  start_long(3);
  EXPECT_TRUE(faulted(op_sysret(cpu, insn(8)), kVectorGp, 0));
}

TEST_F(SyscallTest, sysenter_in_legacy_mode_truncates_to_32_bits) {
  be_intel();
  start_protected(3);
  state.rflags |= kFlagIf;
  EXPECT_TRUE(succeeded(op_sysenter(cpu, insn(4))));
  EXPECT_EQ(state.rip, 0x2000u);
  EXPECT_EQ(state.gpr[kRsp], 0x1000u);
  EXPECT_EQ(state.cpl, 0);
  EXPECT_EQ(state.rflags & kFlagIf, 0u);
  EXPECT_EQ(state.segments[kSs].selector, 0x10);
}

TEST_F(SyscallTest, sysenter_from_compatibility_mode_enters_64_bit_code_on_intel_and_is_ud_on_amd) {
  be_amd();
  start_compatibility(3);
  EXPECT_TRUE(faulted(op_sysenter(cpu, insn(4)), kVectorUd));
  be_intel();
  EXPECT_TRUE(succeeded(op_sysenter(cpu, insn(4))));
  EXPECT_TRUE(state.code64());
  EXPECT_EQ(state.rip, 0xffff800000002000u);
}

TEST_F(SyscallTest, sysenter_with_null_cs_or_in_real_mode_is_gp) {
  be_intel();
  start_real();
  EXPECT_TRUE(faulted(op_sysenter(cpu, insn(4)), kVectorGp, 0));
  start_protected(3);
  state.msrs.sysenter_cs = 3;
  EXPECT_TRUE(faulted(op_sysenter(cpu, insn(4)), kVectorGp, 0));
}

TEST_F(SyscallTest, sysexit_64_takes_rdx_and_rcx) {
  be_intel();
  start_long();
  state.gpr[kRdx] = 0x401000;
  state.gpr[kRcx] = 0x7fff0000;
  EXPECT_TRUE(succeeded(op_sysexit(cpu, insn(8))));
  EXPECT_EQ(state.rip, 0x401000u);
  EXPECT_EQ(state.gpr[kRsp], 0x7fff0000u);
  EXPECT_EQ(state.segments[kCs].selector, 0x2b);
  EXPECT_EQ(state.segments[kSs].selector, 0x33);
  EXPECT_EQ(state.cpl, 3);
}

TEST_F(SyscallTest, sysexit_32_enters_compatibility_mode_and_ring_3_may_not) {
  be_intel();
  start_long();
  EXPECT_TRUE(succeeded(op_sysexit(cpu, insn(4))));
  EXPECT_EQ(state.segments[kCs].selector, 0x1b);
  EXPECT_EQ(state.code_bits(), 32u);
  EXPECT_TRUE(faulted(op_sysexit(cpu, insn(4)), kVectorGp, 0));
}

}  // namespace
}  // namespace anykvm::x86
