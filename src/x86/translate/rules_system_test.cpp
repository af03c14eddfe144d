#include <gtest/gtest.h>
#include <x86intrin.h>

#include "x86/translate/guest_fixture.h"

namespace anykvm::x86 {
namespace {

TEST(SystemRules, cli_and_sti_change_only_if) {
  Guest64 guest;
  guest.code({0xf9,        // stc
              0xfb,        // sti
              0x9c, 0x58,  // pushf; pop rax
              0xfa,        // cli
              0x9c, 0x5b,  // pushf; pop rbx
              0xf4});      // hlt
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kRax], kFlagFixed1 | kFlagCf | kFlagIf);
  EXPECT_EQ(guest.state().gpr[kRbx], kFlagFixed1 | kFlagCf);
}

TEST(SystemRules, sti_opens_the_window_after_one_more_instruction) {
  Guest64 guest;
  guest.code({0xfb,    // sti
              0x90,    // nop
              0xfa,    // cli
              0xf4});  // hlt
  guest.cpu->set_interrupt_window_request(true);
  EXPECT_EQ(guest.run().reason, Exit::Reason::kInterruptWindow);
  EXPECT_EQ(guest.state().rip, Guest64::kCode + 2);
}

TEST(SystemRules, sti_before_the_last_instruction_of_a_page_keeps_its_shadow) {
  Guest64 guest;
  constexpr u64 kAt = Guest64::kCode + 0xfff;
  guest.code({0xfb,   // sti, the last byte of its page
              0x90,   // nop
              0xf4},  // hlt
             kAt);
  guest.cpu->set_interrupt_window_request(true);
  EXPECT_EQ(guest.run(kAt).reason, Exit::Reason::kInterruptWindow);
  EXPECT_EQ(guest.state().rip, kAt + 2);
}

TEST(SystemRules, pushf_pushes_every_arithmetic_flag_where_it_belongs) {
  Guest64 guest;
  guest.code({0xb0, 0x7f,        // mov al, 7FH
              0x04, 0x01,        // add al, 1: OF, SF and AF
              0xf9,              // stc
              0xfd,              // std
              0x9c, 0x5b,        // pushf; pop rbx
              0x31, 0xc0,        // xor eax, eax: ZF and PF
              0xfc,              // cld
              0x66, 0x9c, 0x59,  // pushfw; pop rcx (and six bytes more)
              0xf4});
  guest.write<u64>(Guest64::kStack, 0);
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kRbx], kFlagFixed1 | kFlagOf | kFlagSf | kFlagAf | kFlagCf | kFlagDf);
  EXPECT_EQ(guest.state().gpr[kRcx] & 0xffff, kFlagFixed1 | kFlagZf | kFlagPf);
}

TEST(SystemRules, swapgs_exchanges_the_bases) {
  Guest64 guest;
  guest.code({0x0f, 0x01, 0xf8, 0xf4});
  guest.state().segments[kGs].base = 0x1000;
  guest.state().msrs.kernel_gs_base = 0x2000;
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().segments[kGs].base, 0x2000u);
  EXPECT_EQ(guest.state().msrs.kernel_gs_base, 0x1000u);
}

TEST(SystemRules, rdtsc_adds_the_offset_and_leaves_the_flags) {
  Guest64 guest;
  guest.code({0xf9,                    // stc
              0x0f, 0x31,              // rdtsc
              0x48, 0x83, 0xd3, 0x00,  // adc rbx, 0
              0xf4});
  guest.state().tsc_offset = 1 - __rdtsc();  // the guest's starts near 0
  guest.state().gpr[kRax] = guest.state().gpr[kRdx] = ~u64{0};
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  u64 tsc = guest.state().gpr[kRdx] << 32 | guest.state().gpr[kRax];
  EXPECT_LT(tsc, u64{1} << 40);
  EXPECT_EQ(guest.state().gpr[kRbx], 1u);
}

TEST(SystemRules, rdtsc_of_a_scaled_clock_goes_by_the_helper) {
  Guest64 guest;
  guest.code({0x0f, 0x31, 0xf4});  // rdtsc
  guest.state().tsc_ratio = 0;     // scaled to nothing: the offset remains
  guest.state().tsc_offset = 0x0000000500000007;
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kRax], 7u);
  EXPECT_EQ(guest.state().gpr[kRdx], 5u);
}

TEST(SystemRules, clac_ends_what_stac_permits_however_often_it_was_used) {
  Guest64 guest;
  guest.code({0xb9, 0xe8, 3,    0, 0,  // mov ecx, 1000
              0x0f, 0x01, 0xcb,        // stac
              0x48, 0x8b, 0x03,        // mov rax, [rbx], a user's page
              0x0f, 0x01, 0xca,        // clac
              0xff, 0xc9,              // dec ecx
              0x75, 0xf3,              // jnz stac
              0x48, 0x8b, 0x13,        // mov rdx, [rbx]
              0xf4});
  guest.state().cr4 |= kCr4Smap;
  guest.state().gpr[kRbx] = Guest64::kData;
  guest.write<u64>(Guest64::kData, 7);
  EXPECT_EQ(guest.run().reason, Exit::Reason::kShutdown);  // there is no IDT
  EXPECT_EQ(guest.state().gpr[kRax], 7u);
  EXPECT_EQ(guest.state().rip, Guest64::kCode + 18);
}

// Helpers of kOpKeepsVector run while these are in the host's registers.
TEST(SystemRules, vector_registers_survive_helpers_that_keep_them) {
  Guest64 guest;
  guest.code({0x66, 0x48, 0x0f, 0x6e, 0xf8,  // movq xmm7, rax
              0x66, 0x44, 0x0f, 0x6f, 0xff,  // movdqa xmm15, xmm7
              0x0f, 0x01, 0xcb,              // stac
              0x0f, 0x01, 0xca,              // clac
              0x0f, 0x05});                  // syscall
  guest.code({0x66, 0x4c, 0x0f, 0x7e, 0xfa,  // movq rdx, xmm15
              0xf4},
             Guest64::kCode + 0x100);
  guest.state().msrs.lstar = Guest64::kCode + 0x100;
  guest.state().msrs.star = u64{8} << 32;
  guest.state().cr4 |= kCr4Smap;
  guest.state().gpr[kRax] = 0x123456789abcdef0;
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kRdx], 0x123456789abcdef0u);
}

}  // namespace
}  // namespace anykvm::x86
