// Kicks at random times from another thread: none is lost, whatever the vCPU is doing. ANYKVM_TEST_KICKS says
// how many per test (20,000 in all by default).
#include <pthread.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <random>
#include <thread>

#include "kvm.h"

namespace anykvm::test {
namespace {

constexpr int kSignal = SIGUSR2;

unsigned kicks_wanted() {
  const char* setting = getenv("ANYKVM_TEST_KICKS");
  return setting ? static_cast<unsigned>(atoi(setting)) : 2000;
}

enum class Way { kImmediateExit, kHandlerSetsImmediateExit, kPlainSignal, kSignalMask };
enum class Work { kLoop, kExits, kHalt };

thread_local kvm_run* t_to_stop = nullptr;  // what the handler stops
thread_local unsigned t_handled = 0;

void handler(int) {
  ++t_handled;
  if (t_to_stop) t_to_stop->immediate_exit = 1;
}

std::int64_t nanoseconds(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}

class Kicks : public testing::TestWithParam<std::tuple<Way, Work>> {
 protected:
  Kicks() {
    // 1000H: inc dword [2000H]; jmp. Or with OUT 10H, AL; or HLT with interrupts off. INC says that it runs.
    switch (work) {
      case Work::kLoop:
        guest.set_code({0x66, 0xff, 0x06, 0x00, 0x20, 0xeb, 0xf9});
        break;
      case Work::kExits:
        guest.set_code({0x66, 0xff, 0x06, 0x00, 0x20, 0xe6, 0x10, 0xeb, 0xf7});
        break;
      case Work::kHalt:
        guest.set_code({0x66, 0xff, 0x06, 0x00, 0x20, 0xf4, 0xeb, 0xf8});
        break;
    }
    struct sigaction action {};
    action.sa_handler = handler;
    // A signal that stays pending needs no handler; the default action would end us.
    if (way == Way::kSignalMask) action.sa_handler = SIG_DFL;
    sigaction(kSignal, &action, nullptr);
    sigemptyset(&only_kick);
    sigaddset(&only_kick, kSignal);
  }

  void set_run_mask() {
    sigset_t mask;
    pthread_sigmask(SIG_BLOCK, &only_kick, &mask);
    alignas(kvm_signal_mask) std::array<std::uint8_t, sizeof(kvm_signal_mask) + 8> bytes{};
    auto* request = reinterpret_cast<kvm_signal_mask*>(bytes.data());
    request->len = 8;
    memcpy(request->sigset, &mask, 8);
    ASSERT_EQ(call(guest.vcpu, KVM_SET_SIGNAL_MASK, request), 0);
  }

  // One kick was received: what must be true now.
  void check_received(unsigned handled_before) {
    guest.shared->immediate_exit = 0;
    if (way != Way::kSignalMask) return;
    EXPECT_EQ(t_handled, handled_before);
    timespec none{};
    EXPECT_EQ(sigtimedwait(&only_kick, nullptr, &none), kSignal) << "it must stay pending";
  }

  void vcpu_thread() {
    t_to_stop = way == Way::kHandlerSetsImmediateExit ? guest.shared : nullptr;
    if (way == Way::kSignalMask) set_run_mask();
    ready = true;
    unsigned handled = 0;
    while (received < wanted && !given_up) {
      long result = 0;
      while ((result = guest.run()) == 0) {
        EXPECT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_IO));
      }
      const std::int64_t returned_at = nanoseconds(CLOCK_THREAD_CPUTIME_ID);
      ASSERT_EQ(result, -EINTR);
      // A signal for immediate_exit may come a little later than the flag.
      if (way == Way::kImmediateExit)
        while (t_handled == handled) sched_yield();
      check_received(handled);
      judge(returned_at);
      std::atomic_ref(counter()).store(0);
      handled = t_handled;  // the next kick may come as soon as this one counts
      ++received;
    }
  }

  // The vCPU goes on until the signal is sent, so a kick whose sender was held up itself on the way says
  // nothing of how long the vCPU took.
  void judge(std::int64_t returned_at) {
    while (sent <= received) sched_yield();
    if (sending_ns > 100'000) {
      ++unjudged;
      return;
    }
    const std::int64_t spent = returned_at - kicked_at;
    longest = std::max(longest, spent);
    late += spent > 1'000'000;
  }

  std::uint32_t& counter() { return *reinterpret_cast<std::uint32_t*>(guest.memory.data() + 0x2000); }

  // False: the guest never ran.
  bool wait_until_inside() {
    const std::int64_t begin = nanoseconds(CLOCK_MONOTONIC);
    while (!std::atomic_ref(counter()).load())
      if (nanoseconds(CLOCK_MONOTONIC) - begin > kPatience) return false;
    return true;
  }

  void spend(unsigned limit_ns) {
    const std::int64_t end = nanoseconds(CLOCK_MONOTONIC) + static_cast<std::int64_t>(random() % limit_ns);
    while (nanoseconds(CLOCK_MONOTONIC) < end) {
    }
  }

  bool kick(pthread_t thread, clockid_t clock) {
    const unsigned before = received;
    // A plain signal outside KVM_RUN does not end the next one, on the kernel's KVM neither.
    if (way == Way::kPlainSignal && !wait_until_inside()) return false;
    spend(random() % 8 ? 20'000 : 200'000);
    const std::int64_t begin = nanoseconds(CLOCK_MONOTONIC);
    kicked_at = nanoseconds(clock);
    if (way == Way::kImmediateExit) guest.shared->immediate_exit = 1;
    pthread_kill(thread, kSignal);
    sending_ns = nanoseconds(CLOCK_MONOTONIC) - begin;
    ++sent;
    while (received == before) {
      if (nanoseconds(CLOCK_MONOTONIC) - begin > kPatience) return false;
      sched_yield();
    }
    return true;
  }

  static constexpr std::int64_t kPatience = 20'000'000'000;
  const Way way = std::get<0>(GetParam());
  const Work work = std::get<1>(GetParam());
  Guest guest{{0xf4}, work == Work::kHalt ? Guest::Chips::kIrqchip : Guest::Chips::kNone};
  sigset_t only_kick{};
  unsigned wanted = kicks_wanted();
  std::atomic<bool> ready{false}, given_up{false};
  std::atomic<unsigned> sent{0}, received{0};
  std::atomic<std::int64_t> kicked_at{0}, sending_ns{0};
  std::int64_t longest = 0;
  unsigned late = 0, unjudged = 0;
  std::minstd_rand random{42};
};

TEST_P(Kicks, none_is_lost) {
  std::atomic<bool> ended{false};
  std::thread runner([&] {
    vcpu_thread();
    ended = true;
  });
  while (!ready) sched_yield();
  clockid_t clock{};
  pthread_getcpuclockid(runner.native_handle(), &clock);
  for (unsigned i = 0; i < wanted; ++i) {
    if (kick(runner.native_handle(), clock)) continue;
    ADD_FAILURE() << "kick " << i << " was lost";
    given_up = true;
    // Without an end of the thread there is no end of the test.
    for (; !ended; usleep(1000)) {
      guest.shared->immediate_exit = 1;
      pthread_kill(runner.native_handle(), kSignal);
    }
    break;
  }
  runner.join();
  RecordProperty("longest_cpu_ns", std::to_string(longest));
  printf("%u kicks, longest %.0f us of CPU time, %u above 1 ms; %u not judged\n", wanted,
         static_cast<double>(longest) / 1000, late, unjudged);
  // The clock counts what a hypervisor above takes away as well.
  EXPECT_LE(late, wanted / 1000);
  EXPECT_LE(unjudged, wanted / 2);
}

std::string name_of(const testing::TestParamInfo<std::tuple<Way, Work>>& info) {
  constexpr std::array kWays{"immediate_exit", "handler_sets_immediate_exit", "plain_signal", "signal_mask"};
  constexpr std::array kWorks{"loop", "exits", "halt"};
  return std::string(kWays[static_cast<unsigned>(std::get<0>(info.param))]) + "_" +
         kWorks[static_cast<unsigned>(std::get<1>(info.param))];
}

INSTANTIATE_TEST_SUITE_P(Ways, Kicks,
                         testing::Combine(testing::Values(Way::kImmediateExit, Way::kHandlerSetsImmediateExit,
                                                          Way::kSignalMask),
                                          testing::Values(Work::kLoop, Work::kExits, Work::kHalt)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Plain, Kicks,
                         testing::Combine(testing::Values(Way::kPlainSignal), testing::Values(Work::kLoop)),
                         name_of);

}  // namespace
}  // namespace anykvm::test
