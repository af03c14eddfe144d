#include <gtest/gtest.h>

#include "x86/translate/guest_fixture.h"

namespace anykvm::x86 {
namespace {

// Guest code in 64-bit mode that ends in HLT; RSI points to kData, RDI to the page after it. Faults end in
// kShutdown.
class ExtendedState : public testing::Test {
 protected:
  Exit::Reason run(std::vector<u8> code) {
    code.push_back(0xf4);
    m_guest.code(code);
    m_state.gpr[kRsi] = Guest64::kData, m_state.gpr[kRdi] = Guest64::kData + 0x1000;
    m_state.gpr[kRax] = 0x7, m_state.gpr[kRdx] = 0;
    return m_guest.run().reason;
  }

  static constexpr auto kHalt = Exit::Reason::kHalt;
  static constexpr auto kFault = Exit::Reason::kShutdown;
  Guest64 m_guest;
  CpuState& m_state = m_guest.state();
};

#define MOVUPS_XMM0_RSI 0x0f, 0x10, 0x06
#define MOVUPS_RSI_XMM0 0x0f, 0x11, 0x06
#define XORPS_XMM0 0x0f, 0x57, 0xc0

TEST_F(ExtendedState, xsave_then_xrstor_brings_registers_back) {
  m_guest.write<u64>(Guest64::kData, 0x1122334455667788);
  EXPECT_EQ(run({MOVUPS_XMM0_RSI, 0x0f, 0xae, 0x27,              // xsave [rdi]
                 XORPS_XMM0, MOVUPS_RSI_XMM0, 0x0f, 0xae, 0x2f,  // xrstor [rdi]
                 0x0f, 0x11, 0x46, 0x10}),                       // movups [rsi+16], xmm0
            kHalt);
  EXPECT_EQ(m_guest.read<u64>(Guest64::kData), 0u);
  EXPECT_EQ(m_guest.read<u64>(Guest64::kData + 16), 0x1122334455667788u);
  EXPECT_EQ(m_guest.read<u64>(Guest64::kData + 0x1000 + 160), 0x1122334455667788u);
}

TEST_F(ExtendedState, xsavec_then_xrstor_brings_registers_back) {
  m_guest.write<u64>(Guest64::kData, 0x99);
  EXPECT_EQ(run({MOVUPS_XMM0_RSI, 0x0f, 0xc7, 0x27, XORPS_XMM0, 0x0f, 0xae, 0x2f, 0x0f, 0x11, 0x46, 0x10}),
            kHalt);
  EXPECT_EQ(m_guest.read<u64>(Guest64::kData + 16), 0x99u);
  EXPECT_EQ(m_guest.read<u64>(Guest64::kData + 0x1000 + 520), bit(63) | 0x7);
}

TEST_F(ExtendedState, fxsave_then_fxrstor_brings_registers_back) {
  m_guest.write<u64>(Guest64::kData, 0x77);
  EXPECT_EQ(run({MOVUPS_XMM0_RSI, 0x0f, 0xae, 0x07, XORPS_XMM0, 0x0f, 0xae, 0x0f, 0x0f, 0x11, 0x46, 0x10}),
            kHalt);
  EXPECT_EQ(m_guest.read<u64>(Guest64::kData + 16), 0x77u);
}

TEST_F(ExtendedState, fnsave_then_frstor_brings_the_stack_back) {
  EXPECT_EQ(run({0xdb, 0xe3, 0xd9, 0xe8, 0xdd, 0x37,  // fninit; fld1; fnsave [rdi]
                 0xdd, 0x27, 0xdd, 0x1e}),            // frstor [rdi]; fstp qword [rsi]
            kHalt);
  EXPECT_EQ(m_guest.read<double>(Guest64::kData), 1.0);
}

TEST_F(ExtendedState, maskmovdqu_stores_the_marked_bytes) {
  m_guest.write<u64>(Guest64::kData, 0x8877665544332211);
  m_guest.write<u64>(Guest64::kData + 32, 0x8000000000008000);
  m_guest.write<u64>(Guest64::kData + 0x1000, 0xffffffffffffffff);
  EXPECT_EQ(run({MOVUPS_XMM0_RSI, 0x0f, 0x10, 0x4e, 0x20, 0x66, 0x0f, 0xf7, 0xc1}), kHalt);
  EXPECT_EQ(m_guest.read<u64>(Guest64::kData + 0x1000), 0x88ffffffffff22ffu);
}

TEST_F(ExtendedState, maskmovq_stores_the_marked_bytes) {
  m_guest.write<u64>(Guest64::kData, 0x8877665544332211);
  m_guest.write<u64>(Guest64::kData + 8, 0x0000008000000080);
  EXPECT_EQ(run({0x0f, 0x6f, 0x06, 0x0f, 0x6f, 0x4e, 0x08, 0x0f, 0xf7, 0xc1, 0x0f, 0x77}), kHalt);
  EXPECT_EQ(m_guest.read<u64>(Guest64::kData + 0x1000), 0x0000005500000011u & 0x000000ff000000ffu);
}

TEST_F(ExtendedState, xsave_unaligned_faults) { EXPECT_EQ(run({0x0f, 0xae, 0x67, 0x20}), kFault); }

TEST_F(ExtendedState, xsave_without_osxsave_faults) {
  m_state.cr4 &= ~u64{kCr4Osxsave};
  EXPECT_EQ(run({0x0f, 0xae, 0x27}), kFault);
}

TEST_F(ExtendedState, xsave_with_ts_faults) {
  m_state.cr0 |= kCr0Ts;
  EXPECT_EQ(run({0x0f, 0xae, 0x27}), kFault);
}

TEST_F(ExtendedState, xrstor_of_a_bad_header_faults) {
  m_guest.write<u64>(Guest64::kData + 0x1000 + 512 + 16, 1);
  EXPECT_EQ(run({0x0f, 0xae, 0x2f}), kFault);
}

TEST_F(ExtendedState, xrstors_of_a_standard_image_faults) { EXPECT_EQ(run({0x0f, 0xc7, 0x1f}), kFault); }

TEST_F(ExtendedState, xsaves_then_xrstors_brings_registers_back) {
  m_guest.write<u64>(Guest64::kData, 0x66);
  EXPECT_EQ(run({MOVUPS_XMM0_RSI, 0x0f, 0xc7, 0x2f, XORPS_XMM0, 0x0f, 0xc7, 0x1f, 0x0f, 0x11, 0x46, 0x10}),
            kHalt);
  EXPECT_EQ(m_guest.read<u64>(Guest64::kData + 16), 0x66u);
}

}  // namespace
}  // namespace anykvm::x86
