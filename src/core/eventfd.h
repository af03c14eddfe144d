#pragma once
// The client's eventfds: our own reference to one, and which one it is whatever descriptor names it.
// Owner: whoever holds it. Any thread.

#include <memory>

#include "base/expected.h"
#include "base/fd.h"
#include "base/types.h"

namespace anykvm::core {

class EventFd {
 public:
  // EBADF: no such descriptor. EINVAL: it is not an eventfd.
  static Result<EventFd> open(int number);

  int number() const { return m_fd.get(); }
  void signal() const;
  // Takes the count; false if it was 0. Never blocks.
  bool take() const;
  bool same_as(const EventFd& other) const { return m_id == other.m_id; }
  u64 id() const { return m_id; }

 private:
  EventFd(Fd fd, u64 id) : m_fd(std::move(fd)), m_id(id) {}

  Fd m_fd;
  u64 m_id;  // the kernel's number for the eventfd, the same for all descriptors of it
};

}  // namespace anykvm::core
