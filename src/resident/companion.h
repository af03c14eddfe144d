#pragma once
// A thread of ours for each thread of the resident program that uses KVM: it has the thread-local storage
// that the engine needs, and calls the engine in the program's stead. Each of the two looks for the other for
// a moment before it sleeps, where that helped the last time. Owner: its Task. A request is made by that
// thread alone, with all signals blocked, and by one at a time.

#include <signal.h>

#include <atomic>

#include "base/types.h"

namespace anykvm::resident {

// What the engine is to do; the result is that of a system call: minus an errno.
struct Request {
  using Function = long(const Request&);
  Function* function = nullptr;
  long a = 0, b = 0, c = 0, d = 0, e = 0, f = 0;
};

// How long to look for what is awaited before sleeping. One thread's.
class Patience {
 public:
  // True: `ready` became true.
  template <class Ready>
  bool look(Ready ready) const;
  void waited(u64 cycles);

 private:
  u64 m_cycles = 0;  // of the TSC
};

class Companion {
 public:
  // The calling thread's, made when it is first needed. Null: none can be made here.
  static Companion* of_this_thread();

  long call(const Request& request);
  // As KVM_RUN: signals that `mask` lets in are delivered meanwhile, and one of them ends it. So does
  // `ending`, a descriptor, when it can be read.
  long run(const Request& request, u64 mask, int ending = -1);
  // Its task ends.
  void leave();

 private:
  friend struct CompanionThread;
  // How the program's thread waits, so how it is woken.
  enum Wait : u32 { kLooks, kSleeps, kPolls };
  void post(const Request& request);
  bool look_for_end();
  void sleep_through_run(u64 mask, int ending);
  void interrupt_until_done();

  Request m_request;
  long m_result = 0;
  long m_interrupted_result = 0;  // of a request that another one interrupted
  std::atomic<u32> m_state{0};    // futex; see State in the .cpp
  std::atomic<u32> m_wait{kLooks};
  std::atomic<bool> m_sleeps{false};  // the companion does, on m_state
  int m_done = -1;                    // eventfd: a request of run() is done
  int m_thread = 0;
  bool m_ended = false;                // a request of run() is to end as soon as it can
  u64 m_posted_at = 0, m_done_at = 0;  // TSC
  Patience m_program, m_companion;
};

// The engine has been used in this process.
bool engine_in_use();
// In the child of a clone(2) that libc knows nothing of: KVM can no longer be used.
void lose_companions();
// libc's fork(). The child begins as begin_copied_task() says, and may use KVM.
long fork_with_own_thread_storage();
// SIGSYS on a thread of the engine's: the one whose companion it is got a signal.
void interrupted_companion();
// What to go back to for a moment when libc is needed on a thread of the program's.
void remember_own_thread_storage();

}  // namespace anykvm::resident
