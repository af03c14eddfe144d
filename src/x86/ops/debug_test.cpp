#include "x86/sys/testing.h"

namespace anykvm::x86 {
namespace {

using namespace testing;

class DebugOpsTest : public SysTest {
 protected:
  // MOV between the debug register and RCX.
  static Insn mov(u8 number) {
    Insn result = insn(8);
    result.reg = number;
    result.rm = kRcx;
    return result;
  }
};

TEST_F(DebugOpsTest, breakpoint_addresses_are_64_bits_wide) {
  start_long();
  state.gpr[kRcx] = 0xffff800012345678;
  EXPECT_TRUE(succeeded(op_mov_to_dr(cpu, mov(2))));
  EXPECT_EQ(state.dr[2], 0xffff800012345678u);
  state.gpr[kRcx] = 0;
  EXPECT_TRUE(succeeded(op_mov_from_dr(cpu, mov(2))));
  EXPECT_EQ(state.gpr[kRcx], 0xffff800012345678u);
}

TEST_F(DebugOpsTest, dr6_and_dr7_keep_their_fixed_bits) {
  start_long();
  state.gpr[kRcx] = 0xffffffff;
  EXPECT_TRUE(succeeded(op_mov_to_dr(cpu, mov(6))));
  EXPECT_EQ(state.dr6, 0xffffefffu);
  state.gpr[kRcx] = 0xffffdfff;
  EXPECT_TRUE(succeeded(op_mov_to_dr(cpu, mov(7))));
  EXPECT_EQ(state.dr7, 0xffff07ffu);
}

TEST_F(DebugOpsTest, upper_half_of_dr7_must_be_zero) {
  start_long();
  state.gpr[kRcx] = bit(32);
  EXPECT_TRUE(faulted(op_mov_to_dr(cpu, mov(7)), kVectorGp, 0));
}

TEST_F(DebugOpsTest, dr4_is_dr6_unless_cr4_de_forbids_it) {
  start_long();
  EXPECT_TRUE(succeeded(op_mov_from_dr(cpu, mov(4))));
  EXPECT_EQ(state.gpr[kRcx], state.dr6);
  state.cr4 |= kCr4De;
  EXPECT_TRUE(faulted(op_mov_from_dr(cpu, mov(4)), kVectorUd));
  EXPECT_TRUE(faulted(op_mov_from_dr(cpu, mov(8)), kVectorUd));
}

TEST_F(DebugOpsTest, ring_3_is_gp) {
  start_long(3);
  EXPECT_TRUE(faulted(op_mov_from_dr(cpu, mov(0)), kVectorGp, 0));
}

TEST_F(DebugOpsTest, general_detect_raises_debug_exception_with_bd) {
  start_long();
  state.dr7 |= kDr7Gd;
  Guest<void> result = op_mov_from_dr(cpu, mov(0));
  EXPECT_TRUE(faulted(result, kVectorDb));
  EXPECT_EQ(result.error().fault.payload, u64{kDr6Bd});
}

TEST_F(DebugOpsTest, general_detect_of_the_client_stops_for_it_before_the_move) {
  start_long();
  GuestDebug debug;
  debug.hardware_breakpoints = true;
  debug.breakpoints.control = kDr7Gd;
  cpu.set_guest_debug(debug);
  state.gpr[kRax] = 5;
  Guest<void> result = op_mov_from_dr(cpu, mov(0));
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().kind, GuestStop::Kind::kExit);
  EXPECT_EQ(state.gpr[kRax], 5u);
}

}  // namespace
}  // namespace anykvm::x86
