#include <gtest/gtest.h>

#include "x86/ops/ops.h"
#include "x86/sys/control_registers.h"
#include "x86/translate/guest_fixture.h"

namespace anykvm::x86 {
namespace {

// Guest code in 64-bit mode that ends in HLT. There is no IDT: a fault ends in kShutdown.
class Control : public testing::Test {
 protected:
  Exit::Reason run(std::vector<u8> code) {
    code.push_back(0xf4);
    u64 at = m_next;
    m_next += 0x1000;  // the translator is not told of code that a test overwrites
    m_guest.code(code, at);
    return m_guest.run(at).reason;
  }

  static constexpr auto kHalt = Exit::Reason::kHalt;
  static constexpr auto kFault = Exit::Reason::kShutdown;
  u64 m_next = Guest64::kCode;
  Guest64 m_guest;
  CpuState& m_state = m_guest.state();
};

TEST_F(Control, guest_owned_bits_change_without_an_exit_X4) {
  u64 cr4 = m_state.cr4, owned = kCr4PossiblyGuestOwned & ~u64{kCr4Osfxsr | kCr4Osxmmexcpt};
  m_state.gpr[kRax] = cr4 | owned;
  EXPECT_EQ(run({0x0f, 0x22, 0xe0}), kHalt);  // mov cr4, rax
  EXPECT_EQ(m_state.cr4, cr4 | owned);
  m_state.gpr[kRax] = m_state.cr0 | kCr0Ts;
  EXPECT_EQ(run({0x0f, 0x22, 0xc0, 0x0f, 0x06}), kHalt);  // mov cr0, rax; clts
  EXPECT_FALSE(m_state.cr0 & kCr0Ts);
}

TEST_F(Control, toggling_la57_in_64_bit_mode_faults_X3) {
  m_state.gpr[kRax] = m_state.cr4 | kCr4La57;
  EXPECT_EQ(run({0x0f, 0x22, 0xe0}), kFault);
  EXPECT_FALSE(m_state.cr4 & kCr4La57);
}

TEST_F(Control, tsd_applies_to_user_code_only) {
  m_state.cr4 |= kCr4Tsd;
  EXPECT_EQ(run({0x0f, 0x31}), kHalt);  // rdtsc
  m_state.cpl = 3;
  EXPECT_EQ(op_rdtsc(*m_guest.cpu, Insn{}).error().fault.vector, kVectorGp);
}

TEST_F(Control, rdtscp_gives_tsc_aux) {
  m_state.msrs.tsc_aux = 0x1234;
  EXPECT_EQ(run({0x0f, 0x01, 0xf9}), kHalt);
  EXPECT_EQ(m_state.gpr[kRcx], 0x1234u);
}

TEST_F(Control, rdtsc_goes_forward) {
  EXPECT_EQ(run({0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0, 0x48, 0x89, 0xc3,  // rdtsc into rbx
                 0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0}),                  // rdtsc into rax
            kHalt);
  EXPECT_GT(m_state.gpr[kRax], m_state.gpr[kRbx]);
}

TEST_F(Control, wrmsr_and_rdmsr_pass_a_value) {
  m_state.gpr[kRcx] = 0xc0000082;
  m_state.gpr[kRax] = 0xdddd'd0000123, m_state.gpr[kRdx] = 0xffffffff;
  EXPECT_EQ(run({0x0f, 0x30, 0x31, 0xc0, 0x31, 0xd2, 0x0f, 0x32}), kHalt);  // wrmsr; xor eax, edx; rdmsr
  EXPECT_EQ(m_state.msrs.lstar, 0xffffffff'd0000123u);
  EXPECT_EQ(m_state.gpr[kRax], 0xd0000123u);
  EXPECT_EQ(m_state.gpr[kRdx], 0xffffffffu);
}

TEST_F(Control, rdmsr_unknown_faults) {
  m_state.gpr[kRcx] = 0x12345678;
  EXPECT_EQ(run({0x0f, 0x32}), kFault);
}

TEST_F(Control, cpuid_answers_from_the_model) {
  m_state.gpr[kRax] = 0x40000000;
  EXPECT_EQ(run({0x0f, 0xa2}), kHalt);
  EXPECT_EQ(m_state.gpr[kRbx], 0x4b4d564bu);
}

TEST_F(Control, xsetbv_refuses_avx_without_sse) {
  m_state.gpr[kRax] = kXcr0X87 | kXcr0Avx, m_state.gpr[kRdx] = 0;
  EXPECT_EQ(run({0x0f, 0x01, 0xd1}), kFault);
  m_state.gpr[kRax] = kXcr0X87 | kXcr0Sse;
  EXPECT_EQ(run({0x0f, 0x01, 0xd1, 0x0f, 0x01, 0xd0}), kHalt);  // and xgetbv
  EXPECT_EQ(m_state.gpr[kRax], kXcr0X87 | kXcr0Sse);
}

TEST_F(Control, pkru_needs_cr4_pke) {
  m_state.gpr[kRax] = 0x55555554, m_state.gpr[kRdx] = 0;
  EXPECT_EQ(run({0x0f, 0x01, 0xef}), kFault);  // wrpkru
  m_state.cr4 |= kCr4Pke;
  EXPECT_EQ(run({0x0f, 0x01, 0xef}), kHalt);
  EXPECT_EQ(m_state.pkru, 0x55555554u);
}

TEST_F(Control, mov_cr3_noflush_needs_pcide) {
  m_state.gpr[kRax] = m_state.cr3 | bit(63);
  EXPECT_EQ(run({0x0f, 0x22, 0xd8}), kFault);
  m_state.cr4 |= kCr4Pcide;
  EXPECT_EQ(run({0x0f, 0x22, 0xd8}), kHalt);
  EXPECT_EQ(m_state.cr3, Guest64::kTables);
}

TEST_F(Control, hypercall_that_nobody_answers_is_undefined) {
  EXPECT_EQ(run({0x0f, 0x01, 0xc1}), kFault);  // vmcall
}

TEST_F(Control, hlt_halts) {
  EXPECT_EQ(run({}), kHalt);
  EXPECT_EQ(m_state.mp_state, MpState::kHalted);
  EXPECT_EQ(m_state.rip, Guest64::kCode + 1);
}

TEST_F(Control, invlpg_makes_a_changed_entry_visible) {
  constexpr u64 kEntry = Guest64::kTables + 0x2000 + 8;  // maps kData's 2 MiB page
  m_guest.write<u32>(Guest64::kData, 1);
  m_guest.write<u32>(Guest64::kData + 0x200000, 2);
  m_state.gpr[kRsi] = Guest64::kData, m_state.gpr[kRdi] = kEntry, m_state.gpr[kRdx] = 0x400000 | 0x87;
  EXPECT_EQ(run({0x8b, 0x06,        // mov eax, [rsi]
                 0x48, 0x89, 0x17,  // mov [rdi], rdx
                 0x0f, 0x01, 0x3e,  // invlpg [rsi]
                 0x8b, 0x1e}),      // mov ebx, [rsi]
            kHalt);
  EXPECT_EQ(m_state.gpr[kRax], 1u);
  EXPECT_EQ(m_state.gpr[kRbx], 2u);
}

struct InvpcidCase {
  const char* name;
  u64 type, pcid, address;
  bool valid;
};
class Invpcid : public Control, public testing::WithParamInterface<InvpcidCase> {};
INSTANTIATE_TEST_SUITE_P(WithoutPcide, Invpcid,
                         testing::Values(InvpcidCase{"address", 0, 0, 0x1000, true},
                                         InvpcidCase{"address_of_a_pcid", 0, 1, 0x1000, false},
                                         InvpcidCase{"address_not_canonical", 0, 0, bit(60), false},
                                         InvpcidCase{"context", 1, 0, bit(60), true},
                                         InvpcidCase{"context_of_a_pcid", 1, 5, 0, false},
                                         InvpcidCase{"all_with_globals", 2, 5, 0, true},
                                         InvpcidCase{"all", 3, 5, 0, true},
                                         InvpcidCase{"reserved_bits", 3, 0x1000, 0, false},
                                         InvpcidCase{"unknown_type", 4, 0, 0, false}),
                         [](const auto& info) { return info.param.name; });
TEST_P(Invpcid, is_checked_by_the_manual) {
  const InvpcidCase& c = GetParam();
  m_guest.write<u64>(Guest64::kData, c.pcid);
  m_guest.write<u64>(Guest64::kData + 8, c.address);
  m_state.gpr[kRax] = c.type, m_state.gpr[kRsi] = Guest64::kData;
  EXPECT_EQ(run({0x66, 0x0f, 0x38, 0x82, 0x06}), c.valid ? kHalt : kFault);
}

// --- Long mode is entered and left as SDM 3A 10.8.5 says ---

TEST_F(Control, setting_pg_with_lme_activates_long_mode) {
  m_state.cr0 = kCr0Pe | kCr0Et, m_state.efer = kEferLme;
  m_state.segments[kCs].l = 0, m_state.segments[kCs].db = 1;
  m_guest.cpu->state_replaced();
  ASSERT_TRUE(write_cr0(*m_guest.cpu, m_state.cr0 | kCr0Pg).ok());
  EXPECT_TRUE(m_state.long_mode());
  ASSERT_TRUE(write_cr0(*m_guest.cpu, m_state.cr0 & ~u64{kCr0Pg}).ok());
  EXPECT_FALSE(m_state.long_mode());
  EXPECT_TRUE(m_state.efer & kEferLme);
}

TEST_F(Control, changing_lme_with_paging_faults) { EXPECT_FALSE(write_efer(*m_guest.cpu, kEferNx).ok()); }

TEST_F(Control, writing_efer_cannot_change_lma) {
  ASSERT_TRUE(write_efer(*m_guest.cpu, kEferLme | kEferNx).ok());
  EXPECT_TRUE(m_state.efer & kEferLma);
}

TEST_F(Control, pae_paging_refuses_reserved_pdpte_bits) {
  m_state.cr0 = kCr0Pe | kCr0Et, m_state.efer = 0, m_state.cr4 = kCr4Pae;
  m_state.segments[kCs].l = 0, m_state.segments[kCs].db = 1;
  m_guest.cpu->state_replaced();
  m_guest.write<u64>(Guest64::kTables, 0x2000 | 7);  // bits 1 and 2 are reserved in a PDPTE
  EXPECT_FALSE(write_cr0(*m_guest.cpu, m_state.cr0 | kCr0Pg).ok());
  EXPECT_FALSE(m_state.cr0 & kCr0Pg);
  m_guest.write<u64>(Guest64::kTables, 0x2000 | 1);
  EXPECT_TRUE(write_cr0(*m_guest.cpu, m_state.cr0 | kCr0Pg).ok());
}

}  // namespace
}  // namespace anykvm::x86
