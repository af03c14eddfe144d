#include "x86/sys/breakpoints.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/optimizations.h"
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

// --- Code that has run before, with everything in the TLB and linked, meets a new breakpoint ---

constexpr u64 kWatched = Guest64::kData + 0x1000;  // begins a page

struct Toucher {
  const char* name;
  std::vector<u8> code;  // one instruction that touches kWatched; RBX leads there
  u64 rbx = kWatched;
  bool write = true;
};

std::vector<Toucher> touchers() {
  return {
      {"store", {0x48, 0x89, 0x03}},
      {"load", {0x48, 0x8b, 0x03}, kWatched, false},
      {"store_from_the_page_before", {0x48, 0x89, 0x03}, kWatched - 4},
      {"load_from_the_page_before", {0x48, 0x8b, 0x03}, kWatched - 4, false},
      {"add_to_memory", {0x48, 0x01, 0x03}},
      {"locked_exchange", {0x48, 0x87, 0x03}},
      {"push", {0x50}, kWatched + 8},
      {"pop", {0x58}, kWatched, false},
      {"call", {0xe8, 0, 0, 0, 0}, kWatched + 8},
      {"bit_string", {0x48, 0x0f, 0xab, 0x0b}, kWatched - 0x1000},  // bts [rbx], rcx
      {"vector_store", {0x0f, 0x11, 0x03}, kWatched - 8},
      {"fxsave", {0x0f, 0xae, 0x03}, kWatched - 256},
      {"cmpxchg16b", {0x48, 0x0f, 0xc7, 0x0b}},
      {"stos", {0x48, 0xab}},
  };
}

// Around the toucher are accesses of the page before, which must not trap.
struct WarmGuest : Guest64 {
  explicit WarmGuest(const Toucher& t) {
    std::vector<u8> bytes = {0x48, 0x8b, 0x06,   // mov rax, [rsi]
                             0x48, 0x89, 0x06};  // mov [rsi], rax
    toucher_at = kCode + bytes.size();
    bytes.insert(bytes.end(), t.code.begin(), t.code.end());
    behind = kCode + bytes.size();
    for (u8 byte : {0x48, 0x8b, 0x06, 0x48, 0x89, 0x06, 0xf4}) bytes.push_back(byte);
    code(bytes);
    begin(t);
    EXPECT_EQ(run().reason, Exit::Reason::kHalt);
    EXPECT_EQ(again(t).reason, Exit::Reason::kHalt);
  }

  void begin(const Toucher& t) {
    auto& gpr = state().gpr;
    gpr[kRax] = 7;
    gpr[kRbx] = gpr[kRsp] = gpr[kRdi] = t.rbx;
    gpr[kRcx] = 0x8000;
    gpr[kRsi] = kWatched - 0x800;
    state().mp_state = MpState::kRunnable;
    state().rip = kCode;
  }
  Exit again(const Toucher& t) {
    begin(t);
    return cpu->run();
  }

  u64 toucher_at = 0, behind = 0;
};

class DataBreakpoint : public testing::TestWithParam<Toucher> {};

TEST_P(DataBreakpoint, is_met_by_code_that_ran_before) {
  const Toucher& t = GetParam();
  WarmGuest guest(t);
  guest.cpu->set_guest_debug(
      {.hardware_breakpoints = true, .breakpoints = {{kWatched}, control(t.write ? 1 : 3, 0)}});
  for (int times = 0; times < 3; ++times) {
    const Exit exit = guest.again(t);
    ASSERT_EQ(exit.reason, Exit::Reason::kDebug);
    EXPECT_EQ(exit.debug_dr6 & 0xf, 1u);
    EXPECT_EQ(exit.debug_pc, guest.behind);
    EXPECT_EQ(guest.cpu->run().reason, Exit::Reason::kHalt);
  }
}

TEST_P(DataBreakpoint, elsewhere_on_the_page_changes_nothing) {
  const Toucher& t = GetParam();
  WarmGuest guest(t);
  guest.cpu->set_guest_debug(
      {.hardware_breakpoints = true, .breakpoints = {{kWatched + 0xf00}, control(3, 0)}});
  for (int times = 0; times < 3; ++times) EXPECT_EQ(guest.again(t).reason, Exit::Reason::kHalt);
  guest.cpu->set_guest_debug({});
  EXPECT_EQ(guest.again(t).reason, Exit::Reason::kHalt);
}

INSTANTIATE_TEST_SUITE_P(Touchers, DataBreakpoint, testing::ValuesIn(touchers()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(Breakpoints, repeated_string_stops_after_the_element_that_meets_one) {
  const Toucher fill{"", {0xf3, 0xaa}, kWatched - 0x100};  // rep stosb
  WarmGuest guest(fill);
  guest.cpu->set_guest_debug({.hardware_breakpoints = true, .breakpoints = {{kWatched + 5}, control(1, 0)}});
  const Exit exit = guest.again(fill);
  EXPECT_EQ(exit.reason, Exit::Reason::kDebug);
  EXPECT_EQ(exit.debug_pc, guest.toucher_at);
  EXPECT_EQ(guest.state().gpr[kRdi], kWatched + 6);
  EXPECT_EQ(guest.state().gpr[kRcx], 0x8000u - 0x106);
  EXPECT_EQ(guest.cpu->run().reason, Exit::Reason::kHalt);
  EXPECT_EQ(guest.state().gpr[kRcx], 0u);
}

TEST(Breakpoints, code_and_data_without_one_run_as_ever) {
  Guest64 guest;
  guest.code({0x48, 0x89, 0x03,  // again: mov [rbx], rax
              0x48, 0x8b, 0x13,  // mov rdx, [rbx]
              0xff, 0xc9,        // dec ecx
              0x75, 0xf6,        // jnz again
              0xf4});
  guest.state().gpr[kRbx] = Guest64::kData;
  guest.state().gpr[kRcx] = 10000;
  const u64 elsewhere = Guest64::kCode + 0x1000;
  guest.cpu->set_guest_debug(
      {.hardware_breakpoints = true, .breakpoints = {{elsewhere, kWatched}, 1 | 4 | 3 << 20}});
  EXPECT_EQ(guest.run().reason, Exit::Reason::kHalt);
  EXPECT_TRUE(guest.cpu->counts().lookups < 100 || !optimizations().links);
  EXPECT_LT(guest.cpu->counts().slow_accesses, 100u);
}

// A loop that calls a function on another page, as linked as it gets.
struct CallingGuest : Guest64 {
  static constexpr u64 kFunction = kCode + 0x1000;
  CallingGuest() {
    code({0xe8, 0xfb, 0x0f, 0, 0,  // again: call function
          0xff, 0xc9,              // dec ecx
          0x75, 0xf7,              // jnz again
          0xf4});
    code({0x48, 0xff, 0xc0,  // inc rax
          0xeb, 0x00,        // jmp +0
          0x48, 0xff, 0xc0,  // inc rax
          0xc3},             // ret
         kFunction);
    begin();
    EXPECT_EQ(run().reason, Exit::Reason::kHalt);
  }
  void begin() {
    state().gpr[kRsp] = kStack;
    state().gpr[kRax] = 0;
    state().gpr[kRcx] = 100;
    state().mp_state = MpState::kRunnable;
    state().rip = kCode;
  }
};

TEST(Breakpoints, instruction_breakpoint_is_met_by_code_that_ran_before) {
  for (u64 offset : {u64{0}, u64{3}, u64{5}, u64{8}}) {
    CallingGuest guest;
    guest.cpu->set_guest_debug(
        {.hardware_breakpoints = true, .breakpoints = {{CallingGuest::kFunction + offset}, 1}});
    guest.begin();
    for (unsigned round = 0; round < 100; ++round) {
      const Exit exit = guest.cpu->run();
      ASSERT_EQ(exit.reason, Exit::Reason::kDebug) << offset << " " << round;
      EXPECT_EQ(exit.debug_pc, CallingGuest::kFunction + offset);
      EXPECT_EQ(guest.state().gpr[kRax], 2 * round + (offset == 0 ? 0 : offset < 8 ? 1 : 2));
      guest.state().rflags |= kFlagRf;
    }
    EXPECT_EQ(guest.cpu->run().reason, Exit::Reason::kHalt);
  }
}

}  // namespace
}  // namespace anykvm::x86
