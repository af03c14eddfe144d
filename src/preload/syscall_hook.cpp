// The hook of syscall(2): programs that go past the C library's functions.
#include <alloca.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <linux/openat2.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/raw_syscall.h"
#include "preload/closing.h"
#include "preload/doors.h"
#include "preload/environment.h"
#include "preload/real.h"

namespace anykvm::preload {
namespace {

const char* as_path(long value) { return reinterpret_cast<const char*>(value); }

long finish(long result) {
  if (result >= 0 || result < -4095) return result;
  errno = static_cast<int>(-result);
  return -1;
}

// A file of ours is opened by this call: its descriptor, or -1 and errno.
bool opens_ours(long number, long a, long b, long c, int* fd) {
  switch (number) {
    case SYS_open:
      return open_ours(AT_FDCWD, as_path(a), static_cast<int>(b), fd);
    case SYS_openat:
      return open_ours(static_cast<int>(a), as_path(b), static_cast<int>(c), fd);
    case SYS_openat2:
      return c && open_ours(static_cast<int>(a), as_path(b),
                            static_cast<int>(reinterpret_cast<const open_how*>(c)->flags), fd);
    default:
      return false;
  }
}

bool stats_device(long number, long a, long b, long c, long d, struct stat** out) {
  switch (number) {
    case SYS_fstat:
      return *out = reinterpret_cast<struct stat*>(b), is_device(static_cast<int>(a));
    case SYS_stat:
    case SYS_lstat:
      return *out = reinterpret_cast<struct stat*>(b), is_our_device(AT_FDCWD, as_path(a));
    case SYS_newfstatat:
      return *out = reinterpret_cast<struct stat*>(c),
             is_device_at(static_cast<int>(a), as_path(b), static_cast<int>(d));
    default:
      return false;
  }
}

bool asks_access(long number, long a, long b) {
  constexpr long kFaccessat2 = 439;
  if (number == SYS_access) return is_our_device(AT_FDCWD, as_path(a));
  return (number == SYS_faccessat || number == kFaccessat2) && is_our_device(static_cast<int>(a), as_path(b));
}

long pass_on(long number, long a, long b, long c, long d, long e, long f) {
  return finish(raw_syscall(number, a, b, c, d, e, f));
}

// Calls on descriptors: ours go to the functions' doors.
long on_descriptor(long number, long a, long b, long c, long d, long e, long f) {
  const int fd = static_cast<int>(a);
  int result = 0;
  switch (number) {
    case SYS_ioctl:
      if (is_kvm_request(static_cast<unsigned long>(b)) &&
          device_ioctl(fd, static_cast<unsigned long>(b), static_cast<unsigned long>(c), &result))
        return result;
      break;
    case SYS_fallocate:
      if (const Engine* engine = owner_of(fd)) return engine->fallocate(fd, static_cast<int>(b), c, d);
      break;
    case SYS_close:
      return close_one(fd, [=] { return static_cast<int>(pass_on(number, a, b, c, d, e, f)); });
    case SYS_close_range:
      if (static_cast<unsigned>(a) > static_cast<unsigned>(b) || (c & CLOSE_RANGE_CLOEXEC)) break;
      return close_many(static_cast<unsigned>(a), static_cast<unsigned>(b), [=](unsigned from, unsigned to) {
        return static_cast<int>(pass_on(number, from, to, c, d, e, f));
      });
    case SYS_mmap:
      if (const Engine* engine = d & MAP_ANONYMOUS ? nullptr : owner_of(static_cast<int>(e)))
        return reinterpret_cast<long>(engine->mmap(reinterpret_cast<void*>(a), static_cast<std::size_t>(b),
                                                   static_cast<int>(c), static_cast<int>(d),
                                                   static_cast<int>(e), f));
      break;
    case SYS_dup2:
    case SYS_dup3:
      return dup_onto(static_cast<int>(b),
                      [=] { return static_cast<int>(pass_on(number, a, b, c, d, e, f)); });
    default:
      break;
  }
  return pass_on(number, a, b, c, d, e, f);
}

}  // namespace

namespace {

char* const* as_strings(long value) { return reinterpret_cast<char* const*>(value); }

// execve(2) and execveat(2), with the library in the environment; `environment` is that argument.
template <class Call>
long start_program(long environment, Call&& call) {
  char** space = static_cast<char**>(alloca(room_for(as_strings(environment)) * sizeof(char*)));
  return call(reinterpret_cast<long>(with_library(as_strings(environment), space)));
}

}  // namespace

long hook_syscall(long, long, long, long, long, long, long) ANYKVM_HOOK(syscall);
long hook_syscall(long number, long a, long b, long c, long d, long e, long f) {
  int fd = -1;
  struct stat* status = nullptr;
  switch (number) {
    case SYS_open:
    case SYS_openat:
    case SYS_openat2:
      if (opens_ours(number, a, b, c, &fd)) return fd;
      break;
    case SYS_stat:
    case SYS_lstat:
    case SYS_fstat:
    case SYS_newfstatat:
      if (stats_device(number, a, b, c, d, &status)) return fill_status(*status), 0;
      break;
    case SYS_statx:
      if (is_device_at(static_cast<int>(a), as_path(b), static_cast<int>(c)))
        return fill_status(*reinterpret_cast<struct statx*>(e)), 0;
      break;
    case SYS_access:
    case SYS_faccessat:
    case 439:  // faccessat2
      if (asks_access(number, a, b)) return ((number == SYS_access ? b : c) & X_OK) ? finish(-EACCES) : 0;
      break;
    case SYS_execve:
      return start_program(c, [=](long environment) { return pass_on(number, a, b, environment, d, e, f); });
    case SYS_execveat:
      return start_program(d, [=](long environment) { return pass_on(number, a, b, c, environment, e, f); });
    case SYS_rt_sigprocmask: {
      const long result = pass_on(number, a, b, c, d, e, f);
      if (const Engine* loaded = engine()) loaded->sigmask_changed();
      return result;
    }
    case SYS_ioctl:
    case SYS_close:
    case SYS_fallocate:
    case SYS_close_range:
    case SYS_mmap:
    case SYS_dup2:
    case SYS_dup3:
      return on_descriptor(number, a, b, c, d, e, f);
    default:
      break;
  }
  return pass_on(number, a, b, c, d, e, f);
}

}  // namespace anykvm::preload
