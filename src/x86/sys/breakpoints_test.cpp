#include "x86/sys/breakpoints.h"

#include <gtest/gtest.h>

#include "x86/translate/guest_fixture.h"

namespace anykvm::x86 {
namespace {

// DR7 for breakpoint 0: enabled locally, with these R/W and LEN fields.
u64 control(u64 kind, u64 length) { return 1 | kind << 16 | length << 18; }

TEST(Breakpoints, write_breakpoint_matches_an_overlapping_write_but_no_read) {
  Breakpoints b{{0x1004}, control(1, 3)};
  EXPECT_EQ(matching_data(b, Gva(0x1000), 8, true), 1u);
  EXPECT_EQ(matching_data(b, Gva(0x1000), 8, false), 0u);
  EXPECT_EQ(matching_data(b, Gva(0x1008), 4, true), 0u);
}

TEST(Breakpoints, disabled_breakpoint_never_matches) {
  Breakpoints b{{0x1004}, control(3, 3) & ~u64{3}};
  EXPECT_EQ(matching_data(b, Gva(0x1004), 4, false), 0u);
}

// A client's debugger sees the traps, so no IDT is needed.
struct DebuggedGuest : Guest64 {
  DebuggedGuest() {
    code({0x48, 0x8b, 0x03,  // mov rax, [rbx]
          0x48, 0x89, 0x03,  // mov [rbx], rax
          0x90,              // nop
          0xf4});            // hlt
    state().gpr[kRbx] = kData;
  }
};

TEST(Breakpoints, single_step_exits_after_each_instruction) {
  DebuggedGuest guest;
  guest.cpu->set_guest_debug({.single_step = true});
  EXPECT_EQ(guest.run().reason, Exit::Reason::kDebug);
  EXPECT_EQ(guest.state().rip, Guest64::kCode + 3);
  EXPECT_EQ(guest.cpu->run().reason, Exit::Reason::kDebug);
  EXPECT_EQ(guest.state().rip, Guest64::kCode + 6);
}

TEST(Breakpoints, data_breakpoint_traps_after_the_write) {
  DebuggedGuest guest;
  guest.cpu->set_guest_debug(
      {.hardware_breakpoints = true, .breakpoints = {{Guest64::kData}, control(1, 2)}});
  Exit exit = guest.run();
  EXPECT_EQ(exit.reason, Exit::Reason::kDebug);
  EXPECT_EQ(exit.debug_dr6 & 0xf, 1u);
  EXPECT_EQ(exit.debug_pc, Guest64::kCode + 6);
}

TEST(Breakpoints, instruction_breakpoint_stops_before_the_instruction) {
  DebuggedGuest guest;
  guest.cpu->set_guest_debug(
      {.hardware_breakpoints = true, .breakpoints = {{Guest64::kCode + 6}, control(0, 0)}});
  Exit exit = guest.run();
  EXPECT_EQ(exit.reason, Exit::Reason::kDebug);
  EXPECT_EQ(guest.state().rip, Guest64::kCode + 6);
}

TEST(Breakpoints, int3_of_the_clients_debugger_leaves_rip_at_it) {
  DebuggedGuest guest;
  guest.code({0x90, 0xcc, 0xf4});
  guest.cpu->set_guest_debug({.software_breakpoints = true});
  Exit exit = guest.run();
  EXPECT_EQ(exit.reason, Exit::Reason::kDebug);
  EXPECT_EQ(exit.debug_vector, kVectorBp);
  EXPECT_EQ(guest.state().rip, Guest64::kCode + 1);
}

TEST(Breakpoints, without_a_debugger_code_runs_to_its_end) {
  DebuggedGuest guest;
  guest.cpu->set_guest_debug({});
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
}

}  // namespace
}  // namespace anykvm::x86
