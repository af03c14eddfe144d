#include <gtest/gtest.h>

#include <vector>

#include "x86/ops/io_permission.h"
#include "x86/ops/ops.h"
#include "x86/translate/guest_fixture.h"

namespace anykvm::x86 {
namespace {

class Io : public testing::Test {
 protected:
  void code(std::vector<u8> bytes) {
    bytes.push_back(0xf4);
    m_guest.code(bytes);
    m_state.rip = Guest64::kCode;
    m_guest.cpu->state_replaced();
  }

  Guest64 m_guest;
  Cpu& m_cpu = *m_guest.cpu;
  CpuState& m_state = m_guest.state();
};

TEST_F(Io, in_leaves_for_the_client_and_takes_its_answer) {
  code({0xe4, 0x60});  // in al, 0x60
  m_state.gpr[kRax] = 0x1122;
  Exit exit = m_cpu.run();
  EXPECT_EQ(exit.reason, Exit::Reason::kPio);
  EXPECT_EQ(exit.port, 0x60);
  EXPECT_EQ(exit.size, 1);
  EXPECT_FALSE(exit.write);
  EXPECT_EQ(m_state.rip, Guest64::kCode);
  u8 answer = 0x5a;
  m_cpu.complete_io(&answer);
  EXPECT_EQ(m_cpu.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(m_state.gpr[kRax], 0x115au);
}

TEST_F(Io, out_gives_the_client_the_value) {
  code({0xef});  // out dx, eax
  m_state.gpr[kRax] = 0xaabbccdd, m_state.gpr[kRdx] = 0x3f8;
  Exit exit = m_cpu.run();
  EXPECT_EQ(exit.port, 0x3f8);
  EXPECT_EQ(exit.size, 4);
  EXPECT_TRUE(exit.write);
  EXPECT_EQ(exit.data[0], 0xdd);
  EXPECT_EQ(exit.data[3], 0xaa);
  m_cpu.complete_io(nullptr);
  EXPECT_EQ(m_cpu.run().reason, Exit::Reason::kHalt);
}

TEST_F(Io, rep_ins_asks_for_all_elements_at_once) {
  code({0xf3, 0x66, 0x6d});  // rep insw
  m_state.gpr[kRcx] = 2, m_state.gpr[kRdx] = 0x1f0, m_state.gpr[kRdi] = Guest64::kData;
  u16 elements[] = {0x1111, 0x2222};
  Exit exit = m_cpu.run();
  EXPECT_EQ(exit.size, 2);
  EXPECT_EQ(exit.count, 2u);
  m_cpu.complete_io(elements);
  EXPECT_EQ(m_cpu.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(m_state.gpr[kRcx], 0u);
  EXPECT_EQ(m_state.gpr[kRdi], Guest64::kData + 4);
  EXPECT_EQ(m_guest.read<u32>(Guest64::kData), 0x22221111u);
}

TEST_F(Io, rep_outsb_sends_the_bytes_in_order) {
  code({0xf3, 0x6e});
  m_guest.write<u16>(Guest64::kData, 0x4241);
  m_state.gpr[kRcx] = 2, m_state.gpr[kRdx] = 0x402, m_state.gpr[kRsi] = Guest64::kData;
  EXPECT_EQ(m_cpu.run().data[0], 0x41);
  m_cpu.complete_io(nullptr);
  EXPECT_EQ(m_cpu.run().data[0], 0x42);
  m_cpu.complete_io(nullptr);
  EXPECT_EQ(m_cpu.run().reason, Exit::Reason::kHalt);
}

TEST_F(Io, ins_into_an_unmapped_page_faults_before_the_port_is_read) {
  code({0x6c});
  m_guest.write<u64>(Guest64::kTables + 0x2000 + 8, 0);
  m_state.gpr[kRdi] = Guest64::kData;
  EXPECT_EQ(m_cpu.run().reason, Exit::Reason::kShutdown);
}

// --- The permission bitmap ---

class IoPermission : public Io {
 protected:
  static constexpr u64 kTss = Guest64::kData;
  void SetUp() override {
    m_state.cpl = 3;
    m_state.tr = Segment{.base = kTss, .limit = 104 + 32, .type = 11, .present = 1};
    m_guest.write<u16>(kTss + 102, 104);
    m_guest.write<u8>(kTss + 104 + 0x60 / 8, 0b00010010);  // 0x61 and 0x64 are denied
    m_guest.write<u8>(kTss + 104 + 31, 0x80);              // 0xff is denied
  }
  bool allowed(u16 port, unsigned size) { return check_io_permission(m_cpu, port, size).ok(); }
};

TEST_F(IoPermission, bitmap_decides_for_user_code) {
  EXPECT_TRUE(allowed(0x60, 1));
  EXPECT_FALSE(allowed(0x61, 1));
  EXPECT_FALSE(allowed(0x60, 2));
  EXPECT_TRUE(allowed(0x62, 2));
  EXPECT_FALSE(allowed(0x62, 4));
}

TEST_F(IoPermission, ports_across_a_byte_are_all_checked) { EXPECT_FALSE(allowed(0xfe, 4)); }

TEST_F(IoPermission, beyond_the_limit_is_denied) {
  EXPECT_TRUE(allowed(0xf7, 1));
  EXPECT_FALSE(allowed(0x100, 1));
}

TEST_F(IoPermission, iopl_overrides_the_bitmap) {
  m_state.rflags |= kFlagIopl;
  EXPECT_TRUE(allowed(0x61, 1));
}

TEST_F(IoPermission, virtual_8086_mode_ignores_iopl) {
  m_state.rflags |= kFlagIopl | kFlagVm;
  EXPECT_FALSE(allowed(0x61, 1));
  EXPECT_TRUE(allowed(0x60, 1));
}

TEST_F(IoPermission, a_16_bit_tss_denies_all) {
  m_state.tr.type = 3;
  EXPECT_FALSE(allowed(0x60, 1));
}

TEST_F(IoPermission, a_tss_without_bitmap_denies_all) {
  m_guest.write<u16>(kTss + 102, 104 + 32 + 1);
  EXPECT_FALSE(allowed(0x60, 1));
}

}  // namespace
}  // namespace anykvm::x86
