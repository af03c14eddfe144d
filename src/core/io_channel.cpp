#include "core/io_channel.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>

#include "base/counters.h"
#include "base/raw_syscall.h"
#include "base/trace.h"

namespace anykvm::core {
namespace {

// A pipe whose reader is gone raises SIGPIPE for the thread that writes. The client is not to see that.
class NoSigpipe {
 public:
  NoSigpipe() {
    sigset_t pending;
    sigemptyset(&m_sigpipe);
    sigaddset(&m_sigpipe, SIGPIPE);
    sigpending(&pending);
    m_was_pending = sigismember(&pending, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &m_sigpipe, &m_before);
  }
  ~NoSigpipe() {
    const timespec at_once{};
    if (!m_was_pending) sigtimedwait(&m_sigpipe, nullptr, &at_once);
    pthread_sigmask(SIG_SETMASK, &m_before, nullptr);
  }

 private:
  sigset_t m_sigpipe, m_before;
  bool m_was_pending;
};

// These do not wait, whatever the descriptor's own mode is. Minus the errno.
long write_some(int fd, const void* data, std::size_t size) {
  const long sent = raw_syscall(SYS_sendto, fd, reinterpret_cast<long>(data), static_cast<long>(size),
                                MSG_DONTWAIT | MSG_NOSIGNAL);
  if (sent != -ENOTSOCK) return sent;
  NoSigpipe guard;
  iovec piece{const_cast<void*>(data), size};
  const long written = raw_syscall(SYS_pwritev2, fd, reinterpret_cast<long>(&piece), 1, -1, -1, RWF_NOWAIT);
  if (written != -EOPNOTSUPP) return written;
  // poll(2) has just said that there is room.
  return raw_syscall(SYS_write, fd, reinterpret_cast<long>(data), static_cast<long>(size));
}

long read_some(int fd, void* data, std::size_t size) {
  const long got =
      raw_syscall(SYS_recvfrom, fd, reinterpret_cast<long>(data), static_cast<long>(size), MSG_DONTWAIT);
  if (got != -ENOTSOCK) return got;
  iovec piece{data, size};
  const long read = raw_syscall(SYS_preadv2, fd, reinterpret_cast<long>(&piece), 1, -1, -1, RWF_NOWAIT);
  if (read != -EOPNOTSUPP) return read;
  return raw_syscall(SYS_read, fd, reinterpret_cast<long>(data), static_cast<long>(size));
}

bool is_transient(long result) { return result == -EAGAIN || result == -EINTR; }

Result<Fd> duplicate(int fd, int refused_mode) {
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || (flags & O_ACCMODE) == refused_mode || (flags & O_PATH))
    return Error{EBADF, "no descriptor that is open for this"};
  Fd copy = duplicate_out_of_the_way(fd);
  if (!copy.valid()) return Error{errno, "no descriptor for a copy"};
  return copy;
}

}  // namespace

Result<IoChannel::FileId> IoChannel::file_of(int fd) {
  struct stat status {};
  if (raw_syscall(SYS_fstat, fd, reinterpret_cast<long>(&status)) != 0)
    return Error{EBADF, "no such descriptor"};
  return FileId{status.st_dev, status.st_ino};
}

Result<std::shared_ptr<IoChannel>> IoChannel::create(int read_fd, int write_fd) {
  std::shared_ptr<IoChannel> channel(new IoChannel);
  channel->m_read = TRY(duplicate(read_fd, O_WRONLY));
  channel->m_write = TRY(duplicate(write_fd, O_RDONLY));
  channel->m_read_file = TRY(file_of(read_fd));
  channel->m_write_file = TRY(file_of(write_fd));
  channel->m_free = out_of_the_way(Fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)));
  channel->m_closed = out_of_the_way(Fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)));
  if (!channel->m_free.valid() || !channel->m_closed.valid())
    return Error{errno, "no descriptor for an eventfd"};
  return channel;
}

bool IoChannel::same_as(int read_fd, int write_fd) const {
  const auto reads = file_of(read_fd), writes = file_of(write_fd);
  return reads.ok() && writes.ok() && reads.value() == m_read_file && writes.value() == m_write_file;
}

void IoChannel::close() { eventfd_write(m_closed.get(), 1); }

// The three things that end any wait in here. kDone: `fd` is ready, or has an error that its next use will
// tell.
IoChannel::Outcome IoChannel::wait_for(int fd, short events, const Caller& caller) {
  for (;;) {
    if (caller.interrupted.load()) return Outcome::kInterrupted;
    pollfd waits[] = {{fd, events, 0}, {caller.wake_fd, POLLIN, 0}, {m_closed.get(), POLLIN, 0}};
    if (poll(waits, 3, -1) < 0) {
      if (errno == EINTR) continue;
      return Outcome::kFailed;
    }
    if (waits[2].revents) return Outcome::kFailed;
    if (waits[0].revents) return Outcome::kDone;
    eventfd_t count;
    if (waits[1].revents) eventfd_read(caller.wake_fd, &count);
  }
}

// Who waits says so first and looks second; release() lets go first and looks second.
IoChannel::Outcome IoChannel::acquire(const Caller& caller) {
  Outcome waited = Outcome::kDone;
  while (m_taken.exchange(true)) {
    if (waited != Outcome::kDone) return waited;
    m_waiting.fetch_add(1);
    if (!m_taken.exchange(true)) return m_waiting.fetch_sub(1), Outcome::kDone;
    waited = wait_for(m_free.get(), POLLIN, caller);
    eventfd_t count;
    if (waited == Outcome::kDone) eventfd_read(m_free.get(), &count);
    m_waiting.fetch_sub(1);
  }
  return Outcome::kDone;
}

void IoChannel::release() {
  m_taken.store(false);
  if (m_waiting.load()) eventfd_write(m_free.get(), 1);
}

// Between exchanges the server has nothing to say: what can be read now would be taken for the next response.
// An end of file counts as well.
bool IoChannel::has_input() const {
  pollfd readable{m_read.get(), POLLIN, 0};
  return poll(&readable, 1, 0) == 1;
}

IoChannel::Outcome IoChannel::fail(IoExchange& exchange) {
  ANYKVM_TRACE(exit, "an ioregionfd server is gone or does not follow the protocol");
  m_broken = true;
  exchange.m_state.store(IoExchange::State::kFailed);
  return Outcome::kFailed;
}

IoChannel::Outcome IoChannel::progress(IoExchange& exchange, const Caller& caller) {
  const auto* command = reinterpret_cast<const u8*>(&exchange.command);
  while (exchange.m_sent < sizeof exchange.command) {
    const long sent =
        write_some(m_write.get(), command + exchange.m_sent, sizeof exchange.command - exchange.m_sent);
    if (sent < 0 && !is_transient(sent)) return fail(exchange);
    if (sent > 0) exchange.m_sent += static_cast<std::size_t>(sent);
    if (exchange.m_sent == sizeof exchange.command) break;
    const Outcome waited = wait_for(m_write.get(), POLLOUT, caller);
    if (waited == Outcome::kFailed) return fail(exchange);
    if (waited == Outcome::kInterrupted) return waited;
  }
  auto* response = reinterpret_cast<u8*>(&exchange.response);
  while (exchange.command.resp && exchange.m_received < sizeof exchange.response) {
    const Outcome waited = wait_for(m_read.get(), POLLIN, caller);
    if (waited == Outcome::kFailed) return fail(exchange);
    if (waited == Outcome::kInterrupted) return waited;
    const long got = read_some(m_read.get(), response + exchange.m_received,
                               sizeof exchange.response - exchange.m_received);
    if (got == 0 || (got < 0 && !is_transient(got))) return fail(exchange);
    if (got > 0) exchange.m_received += static_cast<std::size_t>(got);
  }
  exchange.m_state.store(IoExchange::State::kDone);
  return Outcome::kDone;
}

// m_taken. kDone: the descriptors are free for `exchange`, or broken.
IoChannel::Outcome IoChannel::finish_other(const std::shared_ptr<IoExchange>& exchange,
                                           const Caller& caller) {
  if (!m_current || m_current == exchange) return Outcome::kDone;
  if (progress(*m_current, caller) == Outcome::kInterrupted) return Outcome::kInterrupted;
  m_current = nullptr;
  return Outcome::kDone;
}

// m_taken. Somebody else may have finished it meanwhile.
IoChannel::Outcome IoChannel::go_on(const std::shared_ptr<IoExchange>& exchange, const Caller& caller) {
  const IoExchange::State state = exchange->m_state.load();
  if (state == IoExchange::State::kDone) return Outcome::kDone;
  if (state == IoExchange::State::kFailed) return Outcome::kFailed;
  if (m_broken || (!m_current && has_input())) return fail(*exchange);
  m_current = exchange;
  const Outcome outcome = progress(*exchange, caller);
  if (outcome != Outcome::kInterrupted) m_current = nullptr;
  return outcome;
}

IoChannel::Outcome IoChannel::carry_out(const std::shared_ptr<IoExchange>& exchange, const Caller& caller) {
  Outcome outcome = acquire(caller);
  if (outcome != Outcome::kDone) return outcome;
  outcome = finish_other(exchange, caller);
  if (outcome == Outcome::kDone) outcome = go_on(exchange, caller);
  release();
  if (outcome == Outcome::kDone) ANYKVM_COUNT(ioregion_commands);
  return outcome;
}

}  // namespace anykvm::core
