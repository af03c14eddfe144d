// Calls on descriptors, which may be the engine's.
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <array>
#include <atomic>

#include "abi/objects.h"
#include "anykvm/anykvm.h"
#include "base/fd.h"
#include "base/raw_syscall.h"
#include "resident/call.h"
#include "resident/companion.h"
#include "resident/kept_signals.h"
#include "resident/program_memory.h"
#include "resident/signals.h"
#include "resident/tasks.h"

namespace anykvm::resident {

void name_descriptor(int fd, char (&name)[32]) {
  char* at = stpcpy(name, "/proc/self/fd/");
  for (int unit = 1'000'000'000; unit; unit /= 10)
    if (fd >= unit || unit == 1) *at++ = static_cast<char>('0' + fd / unit % 10);
  *at = 0;
}

namespace {

bool is_kvm_request(long request) { return (request >> 8 & 0xff) == KVMIO; }

// Files that were an engine's when a descriptor of theirs was looked at: their names take the kernel ten
// times as long as their numbers.
class KnownFiles {
 public:
  bool has(int fd, const struct stat& status) const {
    const Place& place = place_of(fd);
    return place.number.load() == status.st_ino && place.device.load() == status.st_dev;
  }
  void note(int fd, const struct stat& status) {
    Place& place = place_of(fd);
    place.number.store(0);  // is no file's
    place.device.store(status.st_dev);
    place.number.store(status.st_ino);
  }

 private:
  struct Place {
    std::atomic<u64> number{0}, device{0};
  };
  Place& place_of(int fd) { return m_places[static_cast<unsigned>(fd) % m_places.size()]; }
  const Place& place_of(int fd) const { return m_places[static_cast<unsigned>(fd) % m_places.size()]; }

  std::array<Place, 512> m_places;
};
KnownFiles g_known_files;

// The file behind `fd` is one that an engine made, here or in the process that it came from: a memfd of its
// name.
bool is_named_as_engines(int fd) {
  struct stat status;
  if (raw_syscall(SYS_fstat, fd, reinterpret_cast<long>(&status)) < 0 || !S_ISREG(status.st_mode))
    return false;
  if (g_known_files.has(fd, status)) return true;
  constexpr char kPrefix[] = "/memfd:anykvm";
  char link[32], target[sizeof kPrefix - 1];
  name_descriptor(fd, link);
  const long size =
      raw_syscall(SYS_readlink, reinterpret_cast<long>(link), reinterpret_cast<long>(target), sizeof target);
  if (size != sizeof target || memcmp(target, kPrefix, sizeof target) != 0) return false;
  g_known_files.note(fd, status);
  return true;
}

bool is_engines(int fd) { return engine_in_use() && is_named_as_engines(fd); }

long ask(Request::Function* function, const Call& call) {
  Companion* companion = Companion::of_this_thread();
  if (!companion) return -EIO;
  return companion->call({function, call.a, call.b, call.c, call.d, call.e, call.f});
}

long ask_for(int fd, Request::Function* function) {
  Companion* companion = Companion::of_this_thread();
  return companion ? companion->call({function, fd}) : -EIO;
}

long do_ioctl(const Request& asked) {
  const int result = anykvm_ioctl(static_cast<int>(asked.a), static_cast<unsigned long>(asked.b), asked.c);
  return result < 0 ? -errno : result;
}

long run_vcpu(const Call& call) {
  Companion* companion = Companion::of_this_thread();
  if (!companion) return -EIO;
  return run_with_signals(*companion, {do_ioctl, call.a, call.b, call.c}, static_cast<int>(call.a),
                          program_mask(call.context));
}

Answer on_ioctl(const Call& call) {
  const int fd = static_cast<int>(call.a);
  if (!is_kvm_request(call.b) || !is_named_as_engines(fd)) return std::nullopt;
  const auto request = static_cast<u32>(call.b);
  if (request == KVM_RUN) return run_vcpu(call);
  if (request == KVM_SET_SIGNAL_MASK)
    return keep_signal_mask(fd, reinterpret_cast<const kvm_signal_mask*>(call.c));
  return ask(do_ioctl, call);
}

Answer on_mmap(const Call& call) {
  if ((call.d & MAP_ANONYMOUS) || !is_engines(static_cast<int>(call.e))) return std::nullopt;
  return ask(
      [](const Request& asked) -> long {
        void* mapped = anykvm_mmap(reinterpret_cast<void*>(asked.a), static_cast<std::size_t>(asked.b),
                                   static_cast<int>(asked.c), static_cast<int>(asked.d),
                                   static_cast<int>(asked.e), asked.f);
        return mapped == MAP_FAILED ? -errno : reinterpret_cast<long>(mapped);
      },
      call);
}

Answer on_fallocate(const Call& call) {
  if (!is_engines(static_cast<int>(call.a))) return std::nullopt;
  return ask(
      [](const Request& asked) -> long {
        return anykvm_fallocate(static_cast<int>(asked.a), static_cast<int>(asked.b), asked.c, asked.d) < 0
                   ? -errno
                   : 0;
      },
      call);
}

// The device itself, not a VM or a vCPU.
bool is_device(int fd) {
  if (!is_engines(fd)) return false;
  const long name = ask_for(fd, [](const Request& asked) -> long {
    return abi::handle_name(static_cast<int>(asked.a)) == "anykvm";
  });
  return name == 1;
}

// fstat(2) and what else looks at a descriptor without a name.
Answer on_status(const Call& call) {
  const bool may_be_empty = (call.number == SYS_statx ? call.c : call.d) & AT_EMPTY_PATH;
  char first = 1;
  if (call.number != SYS_fstat && may_be_empty) read_program(reinterpret_cast<const char*>(call.b), first);
  if ((call.number != SYS_fstat && first) || !is_device(static_cast<int>(call.a))) return std::nullopt;
  if (call.number == SYS_statx) return give_device_status<struct statx>(call.e);
  return give_device_status<struct stat>(call.number == SYS_fstat ? call.b : call.c);
}

bool is_held(int fd) { return fd >= 0 && held_fds.has(static_cast<unsigned>(fd)); }

Answer on_close(const Call& call) {
  const int fd = static_cast<int>(call.a);
  if (!engine_in_use()) return std::nullopt;
  if (is_held(fd)) return -EBADF;
  if (!is_engines(fd)) return std::nullopt;
  forget_signal_mask(fd);
  return ask(
      [](const Request& asked) -> long { return anykvm_close(static_cast<int>(asked.a)) < 0 ? -errno : 0; },
      call);
}

// Around what the engine keeps.
Answer on_close_range(const Call& call) {
  const unsigned last = static_cast<unsigned>(call.b);
  unsigned first = static_cast<unsigned>(call.a);
  if (!engine_in_use() || first > last || (call.c & CLOSE_RANGE_CLOEXEC)) return std::nullopt;
  ask(
      [](const Request& asked) -> long {
        anykvm_close_range(static_cast<unsigned>(asked.a), static_cast<unsigned>(asked.b));
        return 0;
      },
      call);
  for (;;) {
    unsigned held = first;
    while (held <= last && held < HeldFds::kLimit && !held_fds.has(held)) ++held;
    const bool none = held > last || held >= HeldFds::kLimit;
    if (none) return raw_syscall(SYS_close_range, first, last, call.c);
    if (held > first) raw_syscall(SYS_close_range, first, held - 1, call.c);
    if (held == last) return 0;
    first = held + 1;
  }
}

Answer on_dup(const Call& call) {
  const int to = static_cast<int>(call.b);
  if (!engine_in_use()) return std::nullopt;
  if (is_held(to)) return -EBUSY;
  if (!is_engines(to)) return std::nullopt;
  const long result = raw_syscall(call.number, call.a, call.b, call.c);
  if (result < 0) return result;
  ask([](const Request& asked) -> long { return anykvm_replaced(static_cast<int>(asked.b)), 0; }, call);
  return result;
}

}  // namespace

Answer call_on_descriptor(const Call& call) {
  switch (call.number) {
    case SYS_ioctl:
      return on_ioctl(call);
    case SYS_mmap:
      return on_mmap(call);
    case SYS_fallocate:
      return on_fallocate(call);
    case SYS_close:
      return on_close(call);
    case SYS_close_range:
      return on_close_range(call);
    case SYS_fstat:
    case SYS_newfstatat:
    case SYS_statx:
      return on_status(call);
    case SYS_dup2:
    case SYS_dup3:
      return on_dup(call);
    default:
      return std::nullopt;
  }
}

}  // namespace anykvm::resident
