#pragma once
// fork(2) beside our threads: what belongs to the whole process must be whole in the child, where those
// threads are gone. Owner: the process. Any thread.

#include <mutex>
#include <new>

#include "base/types.h"

namespace anykvm {

// How many forks lie between this process and the one that loaded the engine.
u32 fork_generation();

// A mutex for state of the process. A fork waits until it is free, and the child finds it free. Only for
// objects that live as long as the process; a leaf lock.
class ProcessMutex {
 public:
  ProcessMutex();
  ProcessMutex(const ProcessMutex&) = delete;
  ProcessMutex& operator=(const ProcessMutex&) = delete;

  void lock() { m_mutex.lock(); }
  bool try_lock() { return m_mutex.try_lock(); }
  void unlock() { m_mutex.unlock(); }
  // In the child the lock is a thread's of the parent.
  void make_anew() { new (&m_mutex) std::mutex; }
  ProcessMutex* next() const { return m_next; }

 private:
  std::mutex m_mutex;
  ProcessMutex* m_next;
};

}  // namespace anykvm
