#include "core/single_waiter.h"

#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

namespace anykvm::core {
namespace {

constexpr u64 kNsPerSecond = 1'000'000'000;

timespec timespec_of(u64 ns) {
  return {static_cast<time_t>(ns / kNsPerSecond), static_cast<long>(ns % kNsPerSecond)};
}

}  // namespace

void SingleWaiter::sleep(u64 deadline) {
  timespec until = timespec_of(deadline);
  // FUTEX_WAIT_BITSET takes an absolute time, so an interrupted sleep needs no arithmetic.
  syscall(SYS_futex, &m_state, FUTEX_WAIT_BITSET_PRIVATE, kSleeping, deadline == kNever ? nullptr : &until,
          nullptr, FUTEX_BITSET_MATCH_ANY);
}

void SingleWaiter::wake_sleeper() {
  u32 expected = kSleeping;
  // One waker makes the system call, the others see kAwake.
  if (!m_state.compare_exchange_strong(expected, kAwake)) return;
  int saved_errno = errno;
  syscall(SYS_futex, &m_state, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
  errno = saved_errno;
}

u64 monotonic_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<u64>(now.tv_sec) * kNsPerSecond + static_cast<u64>(now.tv_nsec);
}

}  // namespace anykvm::core
