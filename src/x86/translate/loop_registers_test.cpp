#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "base/optimizations.h"
#include "x86/translate/guest_fixture.h"

namespace anykvm::x86 {
namespace {

// Blocks that jump back to their beginning hold R10, R11 and R15 in the host registers of others meanwhile.
class LoopRegisters : public testing::Test {
 protected:
  LoopRegisters() {
    for (unsigned gpr = 0; gpr < 16; ++gpr) {
      if (gpr != kRsp) guest.state().gpr[gpr] = 0x1000 * (gpr + 1);
    }
  }
  // The registers that no test's loop changes.
  void expect_others_kept() {
    for (unsigned gpr : {kRbp, kR12, kR13, kR14, kR8, kR9})
      EXPECT_EQ(guest.state().gpr[gpr], 0x1000 * (gpr + 1)) << gpr;
    EXPECT_EQ(guest.state().gpr[kRsp], Guest64::kStack);
  }
  Guest64 guest;
};

TEST_F(LoopRegisters, count_and_are_written_back_at_the_end) {
  guest.code({0xb9, 0x64, 0,    0,    0,  // mov ecx, 100
              0x49, 0xff, 0xc2,           // inc r10
              0x4d, 0x8d, 0x5b, 0x02,     // lea r11, [r11+2]
              0x4d, 0x01, 0xd7,           // add r15, r10
              0xff, 0xc9,                 // dec ecx
              0x75, 0xf2,                 // jnz inc
              0x4c, 0x89, 0xd0,           // mov rax, r10
              0xf4});
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kRax], 0xb000u + 100);
  EXPECT_EQ(guest.state().gpr[kR11], 0xc000u + 200);
  EXPECT_EQ(guest.state().gpr[kR15], 0x10000u + 100 * 0xb000u + 5050);
  expect_others_kept();
}

TEST_F(LoopRegisters, leave_by_a_branch_in_the_middle) {
  guest.code({0x49, 0xff, 0xc2,                 // inc r10
              0x49, 0x81, 0xfa, 0, 0xc0, 0, 0,  // cmp r10, C000H
              0x74, 0x05,                       // je to hlt
              0x49, 0x01, 0xf3,                 // add r11, rsi
              0xeb, 0xef,                       // jmp inc
              0xf4});
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kR10], 0xc000u);
  EXPECT_EQ(guest.state().gpr[kR11], 0xc000u + 0xfff * 0x7000u);
  expect_others_kept();
}

TEST_F(LoopRegisters, a_loop_may_read_flags_of_its_last_round) {
  guest.code({0xb9, 0x08, 0,    0, 0,  // mov ecx, 8
              0x45, 0x31, 0xd2,        // xor r10d, r10d
              0xf9,                    // stc
              0x4d, 0x11, 0xd2,        // adc r10, r10
              0xf9,                    // stc
              0x8d, 0x49, 0xff,        // lea ecx, [rcx-1]
              0x67, 0xe3, 0x02,        // jecxz to hlt
              0xeb, 0xf4,              // jmp adc
              0xf4});
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kR10], 0xffu);
  expect_others_kept();
}

TEST_F(LoopRegisters, flags_go_round_with_an_unconditional_jump) {
  guest.code({0x4d, 0x11, 0xda,  // adc r10, r11
              0x8b, 0x03,        // mov eax, [rbx]
              0x72, 0x02,        // jc to hlt
              0xeb, 0xf7,        // jmp adc
              0xf4});
  guest.state().gpr[kR10] = 0;
  guest.state().gpr[kR11] = u64{1} << 60;
  guest.state().gpr[kRbx] = Guest64::kData;
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kR10], 0u);
  EXPECT_TRUE(guest.state().rflags & kFlagCf);
  expect_others_kept();
}

TEST_F(LoopRegisters, are_exact_at_a_page_fault) {
  guest.code({0x41, 0x8b, 0x02,                 // mov eax, [r10]
              0x49, 0x81, 0xc2, 0, 0x10, 0, 0,  // add r10, 4096
              0x49, 0xff, 0xc3,                 // inc r11
              0x45, 0x31, 0xff,                 // xor r15d, r15d
              0xeb, 0xee});                     // jmp mov
  guest.state().gpr[kR10] = Guest64::kRam - 0x5000;
  guest.write<u64>(Guest64::kTables + 0x2000 + 8 * (Guest64::kRam >> 21), 0);  // what follows is not mapped
  EXPECT_EQ(guest.run().reason, Exit::Reason::kShutdown);
  EXPECT_EQ(guest.state().cr2, Guest64::kRam);
  EXPECT_EQ(guest.state().rip, Guest64::kCode);
  EXPECT_EQ(guest.state().gpr[kR10], Guest64::kRam);
  EXPECT_EQ(guest.state().gpr[kR11], 0xc000u + 5);
  EXPECT_EQ(guest.state().gpr[kR15], 0u);
  expect_others_kept();
}

TEST_F(LoopRegisters, are_exact_at_a_fault_of_the_host) {
  guest.code({0x49, 0xff, 0xcb,  // dec r11
              0x31, 0xd2,        // xor edx, edx
              0x49, 0xf7, 0xf3,  // div r11
              0xeb, 0xf6});      // jmp dec
  guest.state().gpr[kR11] = 7;
  EXPECT_EQ(guest.run().reason, Exit::Reason::kShutdown);
  EXPECT_EQ(guest.state().rip, Guest64::kCode + 5);
  EXPECT_EQ(guest.state().gpr[kR11], 0u);
  expect_others_kept();
}

TEST_F(LoopRegisters, are_exact_where_a_kick_stops_the_loop) {
  guest.code({0x49, 0xff, 0xc2,  // inc r10
              0x4d, 0x89, 0xd3,  // mov r11, r10
              0xeb, 0xf8});      // jmp inc
  std::thread kicker([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    guest.cpu->request(kAttentionKick);
  });
  EXPECT_EQ(guest.run().reason, Exit::Reason::kInterrupted);
  kicker.join();
  // Without blocks of several instructions (ANYKVM_OPTIMIZE) the kick may come behind each of them.
  const bool behind_inc = guest.state().rip == Guest64::kCode + 3;
  EXPECT_FALSE(behind_inc && optimizations().blocks);
  EXPECT_GT(guest.state().gpr[kR10], 0xb000u);
  EXPECT_EQ(guest.state().gpr[kR11], guest.state().gpr[kR10] - behind_inc);
  expect_others_kept();
}

TEST_F(LoopRegisters, slow_forms_in_the_middle_see_them) {
  // Each store goes to the page of the code itself.
  guest.code({0x4d, 0x89, 0x13,                    // mov [r11], r10
              0x49, 0x83, 0xc3, 0x08,              // add r11, 8
              0x49, 0xff, 0xc2,                    // inc r10
              0x49, 0x81, 0xfa, 0,    0xb1, 0, 0,  // cmp r10, B100H
              0x75, 0xed,                          // jne mov
              0xf4});
  guest.state().gpr[kR11] = Guest64::kCode + 0x400;
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.read<u64>(Guest64::kCode + 0x400 + 8 * 0xff), 0xb0ffu);
  EXPECT_EQ(guest.state().gpr[kR11], Guest64::kCode + 0x400 + 0x800);
  expect_others_kept();
}

TEST_F(LoopRegisters, vector_state_is_loaded_once_and_stays) {
  guest.code({0xb9, 0x0a, 0,    0,    0,     // mov ecx, 10
              0x66, 0x0f, 0xfe, 0xc1,        // paddd xmm0, xmm1
              0x49, 0xff, 0xc2,              // inc r10
              0xff, 0xc9,                    // dec ecx
              0x75, 0xf5,                    // jnz paddd
              0x66, 0x48, 0x0f, 0x7e, 0xc0,  // movq rax, xmm0
              0xf4});
  const u64 ones = 0x0000000100000001;
  std::memcpy(guest.state().xsave.data() + 176, &ones, 8);  // XMM1
  guest.state().xsave[512] = 2;                             // SSE is in use
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kRax], 0x0000000a0000000au);
  expect_others_kept();
}

}  // namespace
}  // namespace anykvm::x86
