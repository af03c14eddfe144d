#include "vmm/stop.h"

namespace anykvm::vmm {

void Stop::request(StopReason reason) {
  {
    std::lock_guard lock(m_mutex);
    if (m_requested) return;
    m_reason = std::move(reason);
    m_requested.store(true, std::memory_order_release);
  }
  m_wakeup.signal();
}

StopReason Stop::reason() const {
  std::lock_guard lock(m_mutex);
  return m_reason;
}

}  // namespace anykvm::vmm
