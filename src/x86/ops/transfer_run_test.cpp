// Privilege changes by translated code, from decoding to delivery.
#include <gtest/gtest.h>

#include "x86/sys/testing.h"
#include "x86/translate/guest_fixture.h"

namespace anykvm::x86 {
namespace {

using namespace testing;

class PrivilegeRunTest : public ::testing::Test {
 protected:
  static constexpr u64 kTable = 0x8000;    // GDT
  static constexpr u64 kVectors = 0x9000;  // IDT
  static constexpr u64 kTask = 0xb000;     // TSS
  static constexpr u64 kSyscallEntry = 0x11000, kIntHandler = 0x12000, kUser = 0x20000;
  static constexpr u64 kKernelStack = 0x310000, kUserStack = 0x320000;

  PrivilegeRunTest() {
    guest.write<u64>(kTable + 0x08, flat(kTypeCode, 0, kLong));
    guest.write<u64>(kTable + 0x10, flat(kTypeData, 0, kBig));
    guest.write<u64>(kTable + 0x20, flat(kTypeData, 3, kBig));
    guest.write<u64>(kTable + 0x28, flat(kTypeCode, 3, kLong));
    guest.write<u64>(kTask + 4, kKernelStack);
    set_gate(0x80, 3);
    CpuState& state = guest.state();
    state.gdtr = {kTable, 0x2f};
    state.idtr = {kVectors, 0xfff};
    state.tr.base = kTask;
    state.tr.limit = 0x67;
    state.efer |= kEferSce;
    state.msrs.star = u64{0x1b} << 48 | u64{0x08} << 32;
    state.msrs.lstar = kSyscallEntry;
    guest.code({0xf4}, kIntHandler);  // hlt
    enter_user_by_iret();
  }

  void set_gate(u8 vector, u8 dpl) {
    guest.write<u64>(kVectors + vector * 16, gate(kTypeInterruptGate32, 0x08, kIntHandler, dpl));
  }

  // The frame that IRETQ at kCode pops.
  void enter_user_by_iret() {
    constexpr u64 kFrame = Guest64::kStack - 40;
    guest.write<u64>(kFrame, kUser);
    guest.write<u64>(kFrame + 8, 0x2b);
    guest.write<u64>(kFrame + 16, kFlagFixed1);
    guest.write<u64>(kFrame + 24, kUserStack);
    guest.write<u64>(kFrame + 32, 0x23);
    guest.state().gpr[kRsp] = kFrame;
    guest.code({0x48, 0xcf});  // iretq
  }
  u64 pushed(unsigned index) { return guest.read<u64>(guest.state().gpr[kRsp] + index * 8); }

  Guest64 guest;
};

TEST_F(PrivilegeRunTest, iretq_syscall_sysretq_int_go_down_up_down_and_up) {
  guest.code({0x0f, 0x05, 0xcd, 0x80}, kUser);                      // syscall; int 80h
  guest.code({0x48, 0x89, 0xcb, 0x48, 0x0f, 0x07}, kSyscallEntry);  // mov rbx, rcx; sysretq
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kRbx], kUser + 2);
  EXPECT_EQ(guest.state().cpl, 0);
  EXPECT_EQ(guest.state().gpr[kRsp], kKernelStack - 40);
  EXPECT_EQ(pushed(0), kUser + 4);
  EXPECT_EQ(pushed(1), 0x2bu);
  EXPECT_EQ(pushed(3), kUserStack);
  EXPECT_EQ(pushed(4), 0x23u);
}

TEST_F(PrivilegeRunTest, privileged_instruction_in_ring_3_is_gp_at_its_own_address) {
  set_gate(kVectorGp, 0);
  guest.code({0x90, 0xfa}, kUser);  // nop; cli
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(pushed(0), 0u);
  EXPECT_EQ(pushed(1), kUser + 1);
  EXPECT_NE(pushed(3) & kFlagRf, 0u);
}

TEST_F(PrivilegeRunTest, int_without_gate_privilege_is_gp_with_the_vector_at_its_own_address) {
  set_gate(kVectorGp, 0);
  set_gate(0x81, 0);
  guest.code({0xcd, 0x81}, kUser);
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(pushed(0), 0x81u * 8 + 2);
  EXPECT_EQ(pushed(1), kUser);
}

TEST_F(PrivilegeRunTest, int3_pushes_the_address_behind_it) {
  set_gate(kVectorBp, 3);
  guest.code({0xcc}, kUser);
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(pushed(0), kUser + 1);
}

TEST_F(PrivilegeRunTest, missing_handlers_shut_the_cpu_down) {
  guest.state().idtr.limit = 0;
  guest.code({0xcd, 0x80}, kUser);
  EXPECT_EQ(guest.run().reason, Exit::Reason::kShutdown);
}

}  // namespace
}  // namespace anykvm::x86
