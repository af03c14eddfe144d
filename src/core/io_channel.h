#pragma once
// One pair of descriptors to an ioregionfd server (docs/ioregionfd.md, SEEDS G3): commands go out, responses
// come back, one exchange at a time. Owner: the regions that use it, and whoever waits in carry_out(). Any
// thread; no lock is held while waiting.

#include <anykvm/ioregion.h>

#include <atomic>
#include <memory>

#include "base/expected.h"
#include "base/fd.h"
#include "base/types.h"

namespace anykvm::core {

// A command and its response, as far as they have got. It stays as it is when the vCPU's thread is called
// away.
struct IoExchange {
  ioregionfd_cmd command{};
  ioregionfd_resp response{};

 private:
  friend class IoChannel;
  enum class State : u8 { kOpen, kDone, kFailed };

  std::size_t m_sent = 0, m_received = 0;
  std::atomic<State> m_state{State::kOpen};
};

class IoChannel {
 public:
  enum class Outcome : u8 {
    kDone,
    kInterrupted,  // go on with the same exchange later
    kFailed,       // the server is gone, breaks the rules, or was taken away
  };

  // How a thread that waits here is called away: `interrupted()` says so, after `wake_fd` has become
  // readable.
  struct Caller {
    int wake_fd;
    const std::atomic<bool>& interrupted;
  };

  // EBADF: no such descriptor, or not open for this.
  static Result<std::shared_ptr<IoChannel>> create(int read_fd, int write_fd);

  bool same_as(int read_fd, int write_fd) const;

  // Another thread's exchange that was left half-way is finished first.
  Outcome carry_out(const std::shared_ptr<IoExchange>& exchange, const Caller& caller);

  // No region has it any longer: whoever waits here fails.
  void close();

 private:
  IoChannel() = default;
  Outcome acquire(const Caller& caller);
  void release();
  Outcome finish_other(const std::shared_ptr<IoExchange>& exchange, const Caller& caller);
  Outcome go_on(const std::shared_ptr<IoExchange>& exchange, const Caller& caller);
  Outcome progress(IoExchange& exchange, const Caller& caller);
  Outcome wait_for(int fd, short events, const Caller& caller);
  bool has_input() const;
  Outcome fail(IoExchange& exchange);

  // What a descriptor names, whatever its number.
  struct FileId {
    u64 device = 0, inode = 0;
    bool operator==(const FileId&) const = default;
  };
  static Result<FileId> file_of(int fd);

  Fd m_read, m_write;
  FileId m_read_file, m_write_file;
  std::atomic<bool> m_taken{false};       // somebody is at the descriptors
  std::atomic<unsigned> m_waiting{0};     // threads that want to be next
  Fd m_free;                              // an eventfd that tells them
  Fd m_closed;                            // an eventfd that is readable after close()
  bool m_broken = false;                  // these two: whoever has taken m_taken
  std::shared_ptr<IoExchange> m_current;  // begun and not finished
};

}  // namespace anykvm::core
