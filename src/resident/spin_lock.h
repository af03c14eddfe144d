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

// One that nobody takes another lock under. A fork(2) waits until all are free, and the child finds them so.
class LeafLock : public SpinLock {
 public:
  LeafLock() : m_next(s_first) { s_first = this; }
  LeafLock(const LeafLock&) = delete;
  LeafLock& operator=(const LeafLock&) = delete;

  static void lock_all() {
    for (LeafLock* lock = s_first; lock; lock = lock->m_next) lock->lock();
  }
  static void unlock_all() {
    for (LeafLock* lock = s_first; lock; lock = lock->m_next) lock->unlock();
  }

 private:
  static inline constinit LeafLock* s_first = nullptr;  // made before the program starts
  LeafLock* m_next;
};

}  // namespace anykvm::resident
