// User code whose page is mapped at several addresses has its blocks once (Block::roams), and everything that
// depends on RIP is as at the address where it runs.
#include <gtest/gtest.h>

#include "base/optimizations.h"
#include "x86/sys/testing.h"
#include "x86/translate/code_cache.h"
#include "x86/translate/guest_fixture.h"

namespace anykvm::x86 {
namespace {

using namespace testing;

// The first gibibyte is mapped three times. User code runs until it does what only the kernel may: that ends
// in a handler with HLT, on whose stack the RIP is.
class RoamingTest : public ::testing::TestWithParam<u64> {
 protected:
  static constexpr u64 kTable = 0x8000, kVectors = 0x9000, kTask = 0xb000, kHandler = 0x12000;
  static constexpr u64 kKernelStack = 0x310000, kUserStack = 0x320000;
  static constexpr u64 kUser = 0x20000, kNextPage = kUser + 0x1000;

  RoamingTest() {
    for (u64 i : {1, 2}) guest.write<u64>(Guest64::kTables + 0x1000 + 8 * i, (Guest64::kTables + 0x2000) | 7);
    guest.write<u64>(kTable + 0x08, flat(kTypeCode, 0, kLong));
    guest.write<u64>(kTable + 0x10, flat(kTypeData, 0, kBig));
    guest.write<u64>(kTask + 4, kKernelStack);
    for (u8 vector : {kVectorGp, kVectorPf})
      guest.write<u64>(kVectors + vector * 16, gate(kTypeInterruptGate32, 0x08, kHandler, 0));
    guest.code({0xf4}, kHandler);  // hlt
    CpuState& state = guest.state();
    state.gdtr = {kTable, 0x2f};
    state.idtr = {kVectors, 0xfff};
    state.tr.base = kTask;
    state.tr.limit = 0x67;
    supervisor = {state.segments[kCs], state.segments[kSs]};
  }

  // The RIP at which the code at `entry` needs the kernel.
  u64 run_user(u64 entry) {
    return run_user_by([&] { return guest.run(entry); });
  }
  // The same, and the vCPU has flushed nothing since it ran last.
  u64 run_user_at_once(u64 entry) {
    return run_user_by([&] {
      guest.state().rip = entry;
      guest.cpu->mode_changed();
      return guest.cpu->run();
    });
  }
  template <class Work>
  u64 run_user_by(Work work) {
    CpuState& state = guest.state();
    state.cpl = 3;
    for (SegmentIndex index : {kCs, kSs}) state.segments[index].dpl = 3, state.segments[index].selector |= 3;
    state.gpr[kRsp] = kUserStack;
    state.gpr[kRdi] = Guest64::kData;
    EXPECT_EQ(work().reason, Exit::Reason::kHalt);
    const u64 rip = guest.read<u64>(state.gpr[kRsp] + 8);
    user_rsp = guest.read<u64>(state.gpr[kRsp] + 32);
    state.segments[kCs] = supervisor[0], state.segments[kSs] = supervisor[1];
    return rip;
  }
  // At the plain address first, then where the test wants it.
  u64 run_there(u64 offset = 0) {
    run_user(kUser + offset);
    return run_user(GetParam() + kUser + offset) - GetParam();
  }
  u64 gpr(Gpr gpr) { return guest.state().gpr[gpr] - GetParam(); }
  Block* block_at(u64 rip) {
    guest.state().cpl = 3;
    Mode mode = compute_mode(guest.state());
    guest.state().cpl = 0;
    return guest.machine->code().find(Gpa(rip % (u64{1} << 30)), rip, mode);
  }

  Guest64 guest;
  std::array<Segment, 2> supervisor;
  u64 user_rsp = 0;
};
INSTANTIATE_TEST_SUITE_P(Aliases, RoamingTest, ::testing::Values(u64{1} << 30, u64{2} << 30));

TEST_P(RoamingTest, blocks_serve_every_address_of_their_page) {
  guest.code({0x90, 0xfa}, kUser);  // nop; cli
  EXPECT_EQ(run_there(), kUser + 1);
  const Block *here = block_at(kUser), *there = block_at(GetParam() + kUser);
  ASSERT_TRUE(here && there);
  EXPECT_EQ(here == there, optimizations().roaming);
}

TEST_P(RoamingTest, kernel_code_does_not) {
  guest.code({0x90, 0xf4});  // nop; hlt
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  const Mode mode = compute_mode(guest.state());
  EXPECT_NE(guest.machine->code().find(Gpa(Guest64::kCode), Guest64::kCode, mode), nullptr);
  EXPECT_EQ(guest.machine->code().find(Gpa(Guest64::kCode), GetParam() + Guest64::kCode, mode), nullptr);
}

// An address that is not canonical, whose sum with the user's mode is that of an address and the kernel's.
TEST_P(RoamingTest, users_do_not_find_the_code_of_the_kernel) {
  constexpr u64 kKernelCode = Guest64::kCode + 0x1000;
  guest.code({0xff, 0xd0, 0xf4});               // call rax; hlt
  guest.code({0xff, 0xc3, 0xc3}, kKernelCode);  // inc ebx; ret
  guest.code({0xff, 0xe0}, kUser);              // jmp rax
  CpuState& state = guest.state();
  for (u64 difference = 1; difference < 128; ++difference) {
    state.gpr[kRbx] = 0;
    state.cpl = 0;
    state.gpr[kRsp] = kKernelStack;
    state.gpr[kRax] = kKernelCode;
    EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
    state.gpr[kRax] = kKernelCode + (difference << 57);
    EXPECT_EQ(run_user_at_once(kUser), kUser);
    ASSERT_EQ(state.gpr[kRbx], 1u) << difference;
  }
}

TEST_P(RoamingTest, operands_relative_to_rip) {
  guest.write<u64>(kUser + 0x100, 0x1122334455667788);
  guest.code({0x48, 0x8d, 0x05, 0xf9, 0x00, 0x00, 0x00,  // lea rax, [rip + F9H] (100H)
              0x48, 0x8b, 0x1d, 0xf2, 0x00, 0x00, 0x00,  // mov rbx, [rip + F2H] (100H)
              0x67, 0x8d, 0x0d, 0xf2, 0xff, 0xff, 0xff,  // lea ecx, [eip - 14] (7)
              0xfa},                                     // cli
             kUser);
  EXPECT_EQ(run_there(), kUser + 21);
  EXPECT_EQ(gpr(kRax), kUser + 0x100);
  EXPECT_EQ(guest.state().gpr[kRbx], 0x1122334455667788u);
  EXPECT_EQ(gpr(kRcx), kUser + 7);
}

TEST_P(RoamingTest, operand_two_gibibytes_away) {
  guest.code({0x48, 0x8d, 0x05, 0xff, 0xff, 0xff, 0x7f, 0xfa},
             kUser + 0xff0);  // lea rax, [rip + 7FFFFFFFH]; cli
  EXPECT_EQ(run_there(0xff0), kUser + 0xff7);
  EXPECT_EQ(gpr(kRax), kUser + 0xff7 + 0x7fffffff);
}

TEST_P(RoamingTest, operand_of_a_helper) {
  guest.write<u32>(kUser + 0x104, 1u << 3);
  guest.code({0xb8, 0x23, 0x00, 0x00, 0x00,              // mov eax, 35
              0x0f, 0xa3, 0x05, 0xf4, 0x00, 0x00, 0x00,  // bt [rip + F4H], eax (100H)
              0x0f, 0x92, 0xc3, 0xfa},
             kUser);  // setc bl; cli
  EXPECT_EQ(run_there(), kUser + 15);
  EXPECT_EQ(guest.state().gpr[kRbx] & 0xff, 1u);
}

TEST_P(RoamingTest, calls_to_another_page_and_back) {
  guest.code({0xe8, 0xfb, 0x0f, 0x00, 0x00, 0xfa}, kUser);  // call 1000H; cli
  guest.code({0x48, 0x8b, 0x04, 0x24, 0xc3}, kNextPage);    // mov rax, [rsp]; ret
  EXPECT_EQ(run_there(), kUser + 5);
  EXPECT_EQ(gpr(kRax), kUser + 5);
  EXPECT_EQ(user_rsp, kUserStack);
}

TEST_P(RoamingTest, loop_within_the_page) {
  guest.code({0xb9, 0x05, 0x00, 0x00, 0x00, 0x31, 0xc0,  // mov ecx, 5; xor eax, eax
              0x01, 0xc8, 0xff, 0xc9, 0x75, 0xfa, 0xfa},
             kUser);  // add eax, ecx; dec ecx; jnz; cli
  EXPECT_EQ(run_there(), kUser + 13);
  EXPECT_EQ(guest.state().gpr[kRax], 15u);
}

TEST_P(RoamingTest, code_runs_into_the_next_page) {
  guest.code({0x90, 0x90}, kUser + 0xffe);
  guest.code({0x48, 0x8d, 0x05, 0xf9, 0xff, 0xff, 0xff, 0xfa}, kNextPage);  // lea rax, [rip - 7]; cli
  EXPECT_EQ(run_there(0xffe), kNextPage + 7);
  EXPECT_EQ(gpr(kRax), kNextPage);
}

TEST_P(RoamingTest, instruction_on_two_pages) {
  guest.code({0x48, 0x8d, 0x05}, kUser + 0xffd);
  guest.code({0xfc, 0xff, 0xff, 0xff, 0xfa}, kNextPage);  // lea rax, [rip - 4]; cli
  EXPECT_EQ(run_there(0xffd), kNextPage + 4);
  EXPECT_EQ(gpr(kRax), kNextPage);
}

TEST_P(RoamingTest, page_fault_in_the_middle_of_a_block) {
  guest.code({0xb8, 0x00, 0x00, 0x00, 0xf0, 0x90, 0x8b, 0x18, 0xfa},
             kUser);  // mov eax, ...; nop; mov ebx, [rax]
  EXPECT_EQ(run_there(), kUser + 6);
  EXPECT_EQ(guest.state().cr2, 0xf0000000u);
}

TEST_P(RoamingTest, jump_to_where_no_code_can_be) {
  guest.code({0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0x40, 0x90, 0xff, 0xd0},
             kUser);  // mov rax, ...; nop; call rax
  EXPECT_EQ(run_there(), kUser + 11);
  EXPECT_EQ(user_rsp, kUserStack);
}

TEST_P(RoamingTest, code_jumps_from_one_of_its_addresses_to_the_other_and_back) {
  guest.code({0x48, 0x8d, 0x05, 0x06, 0x00, 0x00, 0x00,  // again: lea rax, [rip + 6] (there)
              0x4c, 0x31, 0xc0, 0x90, 0xff, 0xe0,        // xor rax, r8; nop; jmp rax
              0x48, 0x8d, 0x1d, 0xec, 0xff, 0xff, 0xff,  // there: lea rbx, [rip - 14H] (again)
              0x48, 0x01, 0xda, 0xff, 0xc9, 0x75, 0xe5,  // add rdx, rbx; dec ecx; jnz again
              0xfa},                                     // cli
             kUser);
  CpuState& state = guest.state();
  state.gpr[kR8] = GetParam();
  state.gpr[kRcx] = 100;
  state.gpr[kRdx] = 0;
  EXPECT_EQ(run_user(kUser), kUser + 27);
  EXPECT_EQ(state.gpr[kRdx], 100 * kUser + 50 * GetParam());
}

TEST_P(RoamingTest, calls_to_another_page_from_one_address_and_the_other) {
  guest.code({0xe8, 0xfb, 0x0f, 0x00, 0x00,              // again: call 1000H
              0x48, 0x8d, 0x05, 0x06, 0x00, 0x00, 0x00,  // lea rax, [rip + 6] (there)
              0x4c, 0x31, 0xc0, 0x90, 0xff, 0xe0,        // xor rax, r8; nop; jmp rax
              0x48, 0x01, 0xda, 0xff, 0xc9, 0x75, 0xe7,  // there: add rdx, rbx; dec ecx; jnz again
              0xfa},                                     // cli
             kUser);
  guest.code({0x48, 0x8d, 0x1d, 0xf9, 0xff, 0xff, 0xff, 0xc3}, kNextPage);  // lea rbx, [rip - 7]; ret
  CpuState& state = guest.state();
  state.gpr[kR8] = GetParam();
  state.gpr[kRcx] = 100;
  state.gpr[kRdx] = 0;
  EXPECT_EQ(run_user(kUser), kUser + 25);
  EXPECT_EQ(state.gpr[kRdx], 100 * kNextPage + 50 * GetParam());
}

TEST_P(RoamingTest, overwritten_code_is_seen_at_every_address) {
  guest.code({0xb8, 0x01, 0x00, 0x00, 0x00, 0xfa}, kUser);  // mov eax, 1; cli
  EXPECT_EQ(run_there(), kUser + 5);
  // mov byte [kUser + 1], 2; jmp kUser
  guest.code({0xc6, 0x04, 0x25, 0x01, 0x00, 0x02, 0x00, 0x02, 0xe9, 0xf3, 0xef, 0xff, 0xff}, kNextPage);
  EXPECT_EQ(run_user(GetParam() + kNextPage) - GetParam(), kUser + 5);
  EXPECT_EQ(guest.state().gpr[kRax], 2u);
  EXPECT_EQ(run_user(kUser), kUser + 5);
  EXPECT_EQ(guest.state().gpr[kRax], 2u);
}

}  // namespace
}  // namespace anykvm::x86
