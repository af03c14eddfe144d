#pragma once
// Why and how a running machine stops: the first request wins, everybody can see it, and the main loop is
// woken. Owner: the machine. Thread-safe.

#include <atomic>
#include <mutex>
#include <string>

#include "vmm/wakeup.h"

namespace anykvm::vmm {

enum class StopCause { kPowerOff, kReset, kTripleFault, kQuit, kTimeout, kSignal, kError };

struct StopReason {
  StopCause cause = StopCause::kError;
  std::string detail = "";  // kError: the sentence for the user
  int signal = 0;           // kSignal: which
};

class Stop {
 public:
  explicit Stop(Wakeup& wakeup) : m_wakeup(wakeup) {}

  void request(StopReason reason);
  bool requested() const { return m_requested.load(std::memory_order_acquire); }
  // Only after requested().
  StopReason reason() const;

 private:
  Wakeup& m_wakeup;
  std::atomic<bool> m_requested{false};
  mutable std::mutex m_mutex;  // guards m_reason
  StopReason m_reason;
};

}  // namespace anykvm::vmm
