#pragma once
// A lock for the few instructions that traps hold one: they have no thread-local storage, which std::mutex's
// system calls may touch, and all signals are blocked there. Owner: whoever embeds it.

#include <atomic>

namespace anykvm::resident {

class SpinLock {
 public:
  void lock() {
    while (m_locked.test_and_set(std::memory_order_acquire)) __builtin_ia32_pause();
  }
  void unlock() { m_locked.clear(std::memory_order_release); }

 private:
  std::atomic_flag m_locked{};
};

}  // namespace anykvm::resident
