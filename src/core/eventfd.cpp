#include "core/eventfd.h"

#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include <mutex>

#include "base/fork.h"

namespace anykvm::core {

// Of the copy: the client may close and open `number` meanwhile. All eventfds share one inode; only /proc
// tells them apart ("eventfd-id" in fdinfo, Linux 5.2).
Result<EventFd> EventFd::open(int number) {
  // One at a time: while the file below is open, it may have a number that the client has just closed, and
  // that another thread is about to name.
  static ProcessMutex mutex;
  std::lock_guard lock(mutex);
  Fd copy = duplicate_out_of_the_way(number);
  if (!copy.valid()) return Error{EBADF, "no such descriptor"};
  Fd info(::open(fmt::format("/proc/self/fdinfo/{}", copy.get()).c_str(), O_RDONLY | O_CLOEXEC));
  if (!info.valid()) return Error{errno, "cannot read /proc/self/fdinfo"};
  char text[512];
  ssize_t length = read(info.get(), text, sizeof text - 1);
  text[length < 0 ? 0 : length] = 0;
  if (!strstr(text, "eventfd-count:")) return Error{EINVAL, "not an eventfd"};
  const char* id = strstr(text, "eventfd-id:");
  if (!id) return Error{ENOSYS, "this kernel does not number eventfds"};
  return EventFd(std::move(copy), strtoull(id + strlen("eventfd-id:"), nullptr, 10));
}

void EventFd::signal() const {
  const u64 one = 1;
  // EAGAIN (a blocking eventfd would block) means that the count is at its maximum: it is signalled already.
  pollfd writable{number(), POLLOUT, 0};
  if (poll(&writable, 1, 0) != 1) return;
  [[maybe_unused]] ssize_t written = write(number(), &one, sizeof one);
}

bool EventFd::take() const {
  pollfd readable{number(), POLLIN, 0};
  if (poll(&readable, 1, 0) != 1) return false;
  u64 count = 0;
  return read(number(), &count, sizeof count) == sizeof count;
}

}  // namespace anykvm::core
