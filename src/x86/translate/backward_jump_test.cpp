// Interrupts that become pending inside of a loop, between two instructions that run as themselves: they are
// delivered where the loop jumps back, in the very round.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>

#include "base/optimizations.h"
#include "x86/translate/guest_fixture.h"

namespace anykvm::x86 {
namespace {

constexpr u8 kVector = 0x20;
constexpr u64 kGdt = 0x8000, kIdt = 0x9000, kHandler = 0xf000, kWatched = 0x201000;
constexpr u64 kRounds = 20, kRound = 7;  // the one that touches the watched page first

class LatePlatform : public QuietPlatform {
 public:
  bool interrupt_ready() override { return ready; }
  std::optional<u8> acknowledge_interrupt() override {
    ready = false;
    return kVector;
  }
  volatile bool ready = false;
};

class BackwardJump : public testing::Test {
 protected:
  BackwardJump() : guest(platform) {
    s_test = this;
    guest.write<u64>(kGdt + 8, 0x00af9b000000ffff);
    guest.write<u64>(kIdt + 16 * kVector, kHandler | u64{8} << 16 | u64{0x8e00} << 32);
    CpuState& s = guest.state();
    s.gdtr.base = kGdt, s.gdtr.limit = 0xff;
    s.idtr.base = kIdt, s.idtr.limit = 0xfff;
    guest.code({0x4c, 0x8b, 0x34, 0x24, 0xf4}, kHandler);  // mov r14, [rsp]; hlt
  }

  // The host's page of the guest's data is touched in the midst of translated code: nothing of C++ runs there
  // that could look at the request.
  static void fault(int signal, siginfo_t* info, void* context) {
    u8* const page = s_test->guest.ram + kWatched;
    auto* const at = static_cast<u8*>(info->si_addr);
    if (at < page || at >= page + kPageSize || !s_test->m_watching)
      return s_test->m_previous.sa_sigaction(signal, info, context);
    mprotect(page, kPageSize, PROT_READ | PROT_WRITE);
    s_test->m_watching = false;
    s_test->platform.ready = true;
    s_test->guest.cpu->request(kAttentionEvent);
  }

  // In front of the engine's own handler, for one run.
  Exit run_watched() {
    struct sigaction action {};
    action.sa_sigaction = fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &m_previous);
    mprotect(guest.ram + kWatched, kPageSize, PROT_NONE);
    m_watching = true;
    const Exit exit = guest.run();
    sigaction(SIGSEGV, &m_previous, nullptr);
    return exit;
  }

  void start() {
    CpuState& s = guest.state();
    s.gpr[kRbx] = kWatched - 8 * kRound;
    s.gpr[kR9] = 0;
    s.gpr[kRdx] = 0;
    s.gpr[kRcx] = kRounds;
    s.gpr[kR8] = Guest64::kCode;
    s.gpr[kR14] = 0;
    s.mp_state = MpState::kRunnable;
    s.rflags |= kFlagIf;
  }

  // A loop that counts in R9 and RDX, with `closing` at its end: jumps to its beginning while --RCX is not 0.
  void expect_delivery_at(std::vector<u8> closing) {
    std::vector<u8> loop = {0x4a, 0x8b, 0x04, 0xcb,  // mov rax, [rbx + r9 * 8]
                            0x49, 0xff, 0xc1,        // inc r9
                            0x48, 0xff, 0xc2};       // inc rdx
    loop.insert(loop.end(), closing.begin(), closing.end());
    loop.push_back(0xf4);
    guest.code(loop);
    // Twice without an interrupt: the blocks are linked, and the pages known.
    for (unsigned i = 0; i < 2; ++i) {
      start();
      ASSERT_EQ(guest.run().reason, Exit::Reason::kHalt);
      ASSERT_EQ(guest.state().gpr[kR9], kRounds);
    }
    start();
    EXPECT_EQ(run_watched().reason, Exit::Reason::kHalt);
    EXPECT_FALSE(m_watching);
    const CpuState& s = guest.state();
    EXPECT_EQ(s.rip, kHandler + 5);
    if (!optimizations().blocks) return;  // then it comes behind the load
    EXPECT_EQ(s.gpr[kR14], Guest64::kCode);
    EXPECT_EQ(s.gpr[kR9], kRound + 1);
    EXPECT_EQ(s.gpr[kRdx], kRound + 1);
    EXPECT_EQ(s.gpr[kRcx], kRounds - kRound - 1);
  }

  LatePlatform platform;
  Guest64 guest;

 private:
  static BackwardJump* s_test;
  struct sigaction m_previous {};
  volatile bool m_watching = false;
};
BackwardJump* BackwardJump::s_test = nullptr;

TEST_F(BackwardJump, conditional_takes_the_interrupt_of_its_round) {
  expect_delivery_at({0xff, 0xc9, 0x75, 0xf2});  // dec ecx; jnz
}

TEST_F(BackwardJump, unconditional_takes_the_interrupt_of_its_round) {
  expect_delivery_at({0xff, 0xc9, 0x74, 0x02, 0xeb, 0xf0});  // dec ecx; jz out; jmp
}

TEST_F(BackwardJump, by_loop_takes_the_interrupt_of_its_round) { expect_delivery_at({0xe2, 0xf4}); }

TEST_F(BackwardJump, by_a_register_takes_the_interrupt_of_its_round) {
  expect_delivery_at({0xff, 0xc9, 0x74, 0x03, 0x41, 0xff, 0xe0});  // dec ecx; jz out; jmp r8
}

TEST_F(BackwardJump, by_a_return_takes_the_interrupt_of_its_round) {
  expect_delivery_at({0xff, 0xc9, 0x74, 0x03, 0x41, 0x50, 0xc3});  // dec ecx; jz out; push r8; ret
}

}  // namespace
}  // namespace anykvm::x86
