#pragma once
// How a signal that is delivered to a thread inside KVM_RUN makes KVM_RUN return EINTR, although no kernel
// tells us (docs/decisions/signals.md). Owner: the thread that runs a vCPU, for the time of one KVM_RUN.
// Process-wide state is under a lock in the .cpp.

#include <signal.h>

#include <array>
#include <atomic>
#include <optional>

#include "base/types.h"
#include "core/cancellation.h"

namespace anykvm::core {

// The kernel's signal set: bit n-1 for signal n.
using SignalSet = u64;
constexpr SignalSet signal_bit(int signal) { return u64{1} << (signal - 1); }

// Who wants to hear of signals. Called on its own thread, right after the client's handler has returned.
class SignalListener {
 public:
  virtual ~SignalListener() = default;
  virtual void signal_arrived() = 0;  // async-signal-safe
};

// Exists while a thread is inside KVM_RUN.
class RunSignals {
 public:
  // `mask`: what KVM_SET_SIGNAL_MASK set. It holds while the object lives.
  RunSignals(SignalListener& listener, std::optional<SignalSet> mask);
  // Puts the mask back. Signals that arrived and that the thread had blocked before are pending again, as
  // after the kernel's KVM_RUN.
  ~RunSignals();
  RunSignals(const RunSignals&) = delete;
  RunSignals& operator=(const RunSignals&) = delete;

  // Call before sleeping: handlers that were installed lately will be noticed for sure from here on.
  void before_sleep();

  // Called by the hook, on this thread.
  void arrived(siginfo_t& info);
  // The same for a signal that another thread got.
  void interrupt() { m_listener.signal_arrived(); }

 private:
  SignalListener& m_listener;
  PostponedCancellation m_cancellation;
  RunSignals* const m_outer;  // interrupted by the handler that we are in
  SignalSet m_saved_mask = 0;
  bool m_mask_changed = false;
  bool m_scanned = false;
  bool m_counted = false;   // among the runs that somebody looks again for
  SignalSet m_kept = 0;     // blocked outside KVM_RUN and open inside
  SignalSet m_guarded = 0;  // of these: default action, which must not be taken
  std::array<siginfo_t, 8> m_requeue;
  unsigned m_requeue_count = 0;
};

// Somebody who sees the client's calls of sigaction() reports them here, after the call: the handler is
// noticed at once, also by threads that are inside KVM_RUN already. Once anything was reported (0: nothing
// yet), nobody looks again and again.
void signal_disposition_changed(int signal);

// The same for the calling thread's mask: once one was reported, all are.
void signal_mask_changed();

// For a process whose handlers run on threads that know nothing of us: from now on they are left alone.
// Somebody else hears of signals, and has each thread told that is in KVM_RUN for one which got a signal.
void signals_come_from_elsewhere();
// On the thread to be told, in a handler.
void signal_arrived_here();
// On a thread that is about to call KVM_RUN for one which has a signal pending.
void signal_arrives_with_next_run();

}  // namespace anykvm::core
