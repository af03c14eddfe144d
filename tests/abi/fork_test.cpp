// fork(2) beside running vCPUs: the child has a world of its own, whatever the threads were in the middle of.
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "kvm.h"

namespace anykvm::test {
namespace {

// The child's exit code; a child that hangs is ended by its alarm clock.
int status_of(pid_t child) {
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

constexpr int kHalted = 42;

[[noreturn]] void run_a_guest_and_exit() {
  alarm(20);
  Guest guest{0xb0, 0x01, 0xe6, 0x10, 0xf4};
  if (guest.run() != 0 || guest.shared->exit_reason != KVM_EXIT_IO) _exit(1);
  if (guest.run() != 0 || guest.shared->exit_reason != KVM_EXIT_HLT) _exit(2);
  _exit(kHalted);
}

TEST(Fork, child_has_virtual_machines_of_its_own) {
  Guest guest;
  EXPECT_EQ(guest.run(), 0);
  const pid_t child = fork();
  if (child == 0) run_a_guest_and_exit();
  EXPECT_EQ(status_of(child), kHalted);
}

TEST(Fork, while_threads_make_and_run_guests) {
  if (kAddressSanitizer) GTEST_SKIP() << "AddressSanitizer cannot fork beside threads";
  make_kickable();
  std::atomic<bool> done{false}, ended{false};
  // One makes VMs and lets them go, one runs a guest that exits all the time, one a guest that a signal ends.
  std::thread maker([&] {
    while (!done) {
      Guest guest;
      EXPECT_EQ(guest.run(), 0);
    }
  });
  std::thread runner([&] {
    Guest guest{0xe6, 0x10, 0xeb, 0xfc};
    while (!done) EXPECT_EQ(guest.run(), 0);
  });
  std::thread spinner([&] {
    Guest guest{0xeb, 0xfe};
    while (!done) EXPECT_EQ(guest.run(), -EINTR);
    ended = true;
  });
  for (unsigned i = 0; i < 60; ++i) {
    const pid_t child = fork();
    if (child == 0) run_a_guest_and_exit();
    pthread_kill(spinner.native_handle(), SIGUSR1);
    ASSERT_EQ(status_of(child), kHalted) << "child " << i;
  }
  done = true;
  maker.join();
  runner.join();
  for (; !ended; usleep(1000)) pthread_kill(spinner.native_handle(), SIGUSR1);
  spinner.join();
}

}  // namespace
}  // namespace anykvm::test
