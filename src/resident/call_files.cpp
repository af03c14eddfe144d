// Calls that name a file: /dev/kvm, /proc/cpuinfo, and the program itself, which the kernel takes for us.
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "anykvm/anykvm.h"
#include "base/raw_syscall.h"
#include "preload/cpu_information.h"
#include "preload/device_path.h"
#include "resident/call.h"
#include "resident/companion.h"
#include "resident/program_memory.h"
#include "resident/tasks.h"

namespace anykvm::resident {

bool names_program(const char* path) {
  constexpr char kBegin[] = "/proc/", kEnd[] = "/exe";
  if (strncmp(path, kBegin, sizeof kBegin - 1) != 0) return false;
  const char* const who = path + sizeof kBegin - 1;
  const char* const end = strchr(who, '/');
  if (!end || strcmp(end, kEnd) != 0) return false;
  const auto size = static_cast<std::size_t>(end - who);
  if ((size == 4 && memcmp(who, "self", size) == 0) || (size == 11 && memcmp(who, "thread-self", size) == 0))
    return true;
  long process = 0;
  for (const char* digit = who; digit < end; ++digit) {
    if (*digit < '0' || *digit > '9' || process > 1 << 24) return false;
    process = 10 * process + (*digit - '0');
  }
  return process == raw_syscall(SYS_getpid);
}

namespace {

constexpr long kFaccessat2 = 439;

const char* as_path(long value) { return reinterpret_cast<const char*>(value); }

// What a call by a name is about.
struct Name {
  int directory;
  const char* path;
};
std::optional<Name> name_in(const Call& call) {
  switch (call.number) {
    case SYS_open:
    case SYS_stat:
    case SYS_lstat:
    case SYS_access:
    case SYS_readlink:
      return Name{AT_FDCWD, as_path(call.a)};
    case SYS_openat:
    case SYS_openat2:
    case SYS_newfstatat:
    case SYS_statx:
    case SYS_faccessat:
    case kFaccessat2:
    case SYS_readlinkat:
      return Name{static_cast<int>(call.a), as_path(call.b)};
    default:
      return std::nullopt;
  }
}

std::optional<int> open_flags(const Call& call) {
  if (call.number == SYS_open) return static_cast<int>(call.b);
  if (call.number == SYS_openat) return static_cast<int>(call.c);
  open_how how;
  if (call.number == SYS_openat2 && read_program(reinterpret_cast<const open_how*>(call.c), how))
    return static_cast<int>(how.flags);
  return std::nullopt;
}

long open_device(int flags) {
  if ((flags & O_CREAT) && (flags & O_EXCL)) return -EEXIST;
  if (flags & O_DIRECTORY) return -ENOTDIR;
  Companion* companion = Companion::of_this_thread();
  if (!companion) return -ENODEV;
  Request request{[](const Request& asked) -> long {
    const int fd = anykvm_open("/dev/kvm", static_cast<int>(asked.a));
    return fd < 0 ? -errno : fd;
  }};
  request.a = flags;
  return companion->call(request);
}

Answer on_device(const Call& call) {
  if (const auto flags = open_flags(call)) return open_device(*flags);
  switch (call.number) {
    case SYS_openat2:
      return -EFAULT;
    case SYS_stat:
    case SYS_lstat:
      return give_device_status<struct stat>(call.b);
    case SYS_newfstatat:
      return give_device_status<struct stat>(call.c);
    case SYS_statx:
      return give_device_status<struct statx>(call.e);
    case SYS_access:
      return call.b & X_OK ? -EACCES : 0;
    case SYS_faccessat:
    case kFaccessat2:
      return call.c & X_OK ? -EACCES : 0;
    default:
      return -EINVAL;  // readlink(2) of what is no link
  }
}

// The kernel's /proc/self/exe is anykvm.
Answer on_program(const Call& call) {
  const char* program = g_identity.program;
  if (call.number == SYS_readlink || call.number == SYS_readlinkat) {
    const bool at = call.number == SYS_readlinkat;
    const std::size_t room = static_cast<std::size_t>(at ? call.d : call.c), size = strlen(program);
    const std::size_t shown = size < room ? size : room;
    if (!write_program(reinterpret_cast<char*>(at ? call.c : call.b), program, shown)) return -EFAULT;
    return static_cast<long>(shown);
  }
  const long path = reinterpret_cast<long>(program);
  const bool by_name = call.number == SYS_open || call.number == SYS_stat || call.number == SYS_lstat ||
                       call.number == SYS_access;
  return by_name ? raw_syscall(call.number, path, call.b, call.c)
                 : raw_syscall(call.number, AT_FDCWD, path, call.c, call.d, call.e);
}

Answer open_cpu_information(int flags) {
  Companion* companion = Companion::of_this_thread();
  if (!companion) return std::nullopt;
  Request request{[](const Request& asked) -> long {
    const int fd = preload::open_cpu_information(static_cast<int>(asked.a));
    return fd < 0 ? -errno : fd;
  }};
  request.a = flags;
  return companion->call(request);
}

}  // namespace

Answer call_on_file_name(const Call& call) {
  const auto name = name_in(call);
  if (!name || !is_readable_string(name->path)) return std::nullopt;
  if (preload::names_device(name->directory, name->path)) return on_device(call);
  if (names_program(name->path)) return on_program(call);
  const auto flags = open_flags(call);
  if (flags && preload::names_cpu_information(name->path, *flags)) return open_cpu_information(*flags);
  return std::nullopt;
}

}  // namespace anykvm::resident
