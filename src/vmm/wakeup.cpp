#include "vmm/wakeup.h"

#include <sys/eventfd.h>
#include <unistd.h>

namespace anykvm::vmm {

Wakeup::Wakeup() : m_fd(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {}

Wakeup::~Wakeup() {
  if (m_fd >= 0) close(m_fd);
}

// A full counter means that the wake-up is already due.
void Wakeup::signal() { [[maybe_unused]] int result = eventfd_write(m_fd, 1); }

void Wakeup::clear() {
  eventfd_t count;
  [[maybe_unused]] int result = eventfd_read(m_fd, &count);
}

}  // namespace anykvm::vmm
