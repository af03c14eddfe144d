#include "vmm/console_output.h"

#include <poll.h>
#include <unistd.h>

#include <cerrno>

#include "vmm/failure.h"

namespace anykvm::vmm {

// A kick of the vCPU thread interrupts both write() and poll(), so a reader that went to sleep cannot hold up
// the end.
void ConsoleOutput::put(u8 byte) {
  constexpr int kLookAgainMs = 100;
  std::lock_guard lock(m_mutex);
  while (!m_stop.requested()) {
    if (write(m_fd, &byte, 1) == 1) return;
    if (errno == EAGAIN) {
      pollfd out{m_fd, POLLOUT, 0};
      poll(&out, 1, kLookAgainMs);
    } else if (errno != EINTR) {
      m_stop.request(
          {StopCause::kError, failure("cannot write to standard output: {}", strerror(errno)).text});
    }
  }
}

}  // namespace anykvm::vmm
