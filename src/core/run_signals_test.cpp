#include "core/run_signals.h"

#include <errno.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <csetjmp>

namespace anykvm::core {
namespace {

struct Listener final : SignalListener {
  int arrivals = 0;
  void signal_arrived() override { ++arrivals; }
};

int g_handled = 0;
int g_value = 0;
void count_handler(int) { ++g_handled; }
void value_handler(int, siginfo_t* info, void*) { g_value = info->si_value.sival_int; }

// Installs an action for one test and puts the old one back.
class Action {
 public:
  Action(int signal, void (*handler)(int), int flags = 0) : m_signal(signal) {
    struct sigaction action {};
    action.sa_handler = handler;
    action.sa_flags = flags;
    sigaddset(&action.sa_mask, SIGUSR2);
    sigaction(signal, &action, &m_old);
    g_handled = 0;
  }
  ~Action() { sigaction(m_signal, &m_old, nullptr); }

 private:
  int m_signal;
  struct sigaction m_old {};
};

bool pending(int signal) {
  sigset_t set;
  sigpending(&set);
  return sigismember(&set, signal) == 1;
}

class BlockedSignal {
 public:
  explicit BlockedSignal(int signal) {
    sigemptyset(&m_set);
    sigaddset(&m_set, signal);
    pthread_sigmask(SIG_BLOCK, &m_set, nullptr);
  }
  ~BlockedSignal() {
    timespec now{};
    sigtimedwait(&m_set, nullptr, &now);
    pthread_sigmask(SIG_UNBLOCK, &m_set, nullptr);
  }

 private:
  sigset_t m_set;
};

TEST(RunSignals, handled_signal_runs_the_handler_and_is_reported) {
  Action action(SIGUSR1, count_handler);
  Listener listener;
  RunSignals running(listener, std::nullopt);
  raise(SIGUSR1);
  EXPECT_EQ(g_handled, 1);
  EXPECT_EQ(listener.arrivals, 1);
}

TEST(RunSignals, signal_outside_the_run_is_not_reported) {
  Action action(SIGUSR1, count_handler);
  Listener listener;
  { RunSignals running(listener, std::nullopt); }
  raise(SIGUSR1);
  EXPECT_EQ(g_handled, 1);
  EXPECT_EQ(listener.arrivals, 0);
}

TEST(RunSignals, disposition_reads_back_unchanged) {
  Action action(SIGUSR1, count_handler, SA_RESTART);
  Listener listener;
  RunSignals running(listener, std::nullopt);
  struct sigaction seen {};
  sigaction(SIGUSR1, nullptr, &seen);
  EXPECT_EQ(seen.sa_handler, count_handler);
  EXPECT_EQ(sigismember(&seen.sa_mask, SIGUSR2), 1);
  EXPECT_TRUE(seen.sa_flags & SA_RESTART);
}

TEST(RunSignals, handler_gets_the_senders_siginfo) {
  struct sigaction action {
  }, old{};
  action.sa_sigaction = value_handler;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGUSR1, &action, &old);
  Listener listener;
  RunSignals running(listener, std::nullopt);
  sigval value{};
  value.sival_int = 77;
  sigqueue(getpid(), SIGUSR1, value);
  sigaction(SIGUSR1, &old, nullptr);
  EXPECT_EQ(g_value, 77);
  EXPECT_EQ(listener.arrivals, 1);
}

TEST(RunSignals, ignored_signal_is_not_reported) {
  Action action(SIGUSR1, SIG_IGN);
  Listener listener;
  RunSignals running(listener, std::nullopt);
  raise(SIGUSR1);
  EXPECT_EQ(listener.arrivals, 0);
}

TEST(RunSignals, signal_blocked_outside_and_open_inside_is_reported_and_stays_pending) {
  Action action(SIGUSR1, count_handler);
  BlockedSignal blocked(SIGUSR1);
  Listener listener;
  raise(SIGUSR1);
  { RunSignals running(listener, SignalSet{0}); }
  EXPECT_EQ(listener.arrivals, 1);
  EXPECT_TRUE(pending(SIGUSR1));
}

TEST(RunSignals, default_action_of_a_signal_open_only_inside_is_not_taken) {
  BlockedSignal blocked(SIGUSR1);
  Listener listener;
  {
    RunSignals running(listener, SignalSet{0});
    raise(SIGUSR1);
  }
  EXPECT_EQ(listener.arrivals, 1);
  EXPECT_TRUE(pending(SIGUSR1));
  struct sigaction seen {};
  sigaction(SIGUSR1, nullptr, &seen);
  EXPECT_EQ(seen.sa_handler, SIG_DFL);
}

TEST(RunSignals, mask_of_the_run_blocks_and_the_old_one_comes_back) {
  Action action(SIGUSR1, count_handler);
  Listener listener;
  {
    RunSignals running(listener, signal_bit(SIGUSR1));
    raise(SIGUSR1);
    EXPECT_EQ(listener.arrivals, 0);
  }
  EXPECT_EQ(g_handled, 1);
}

TEST(RunSignals, fault_signals_are_open_inside_even_if_the_mask_blocks_them) {
  Listener listener;
  RunSignals running(listener, ~SignalSet{0});
  SignalSet mask = 0;
  syscall(SYS_rt_sigprocmask, SIG_BLOCK, nullptr, &mask, sizeof mask);
  EXPECT_FALSE(mask & signal_bit(SIGSEGV));
  EXPECT_TRUE(mask & signal_bit(SIGUSR1));
}

TEST(RunSignals, errno_and_registers_survive_a_signal) {
  Action action(SIGUSR1, count_handler);
  Listener listener;
  RunSignals running(listener, std::nullopt);
  errno = 1234;
  raise(SIGUSR1);
  EXPECT_EQ(errno, 1234);
}

}  // namespace
}  // namespace anykvm::core
