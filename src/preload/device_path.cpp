#include "preload/device_path.h"

#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/sysmacros.h>

#include <cstddef>

#include "base/raw_syscall.h"

namespace anykvm::preload {
namespace {

constexpr unsigned kMajor = 10, kMinor = 232;  // Linux's device list: misc, kvm
constexpr char kDevice[] = "/dev/kvm";

// Appends the components of `path` to `out`, resolving "." and ".." by their text.
bool append(char (&out)[PATH_MAX], std::size_t& length, const char* path) {
  while (*path) {
    if (*path == '/') {
      ++path;
      continue;
    }
    const std::size_t size = strcspn(path, "/");
    if (size == 2 && path[0] == '.' && path[1] == '.') {
      while (length && out[--length] != '/') {
      }
    } else if (size != 1 || path[0] != '.') {
      if (length + size + 2 > sizeof out) return false;
      out[length++] = '/';
      memcpy(out + length, path, size);
      length += size;
    }
    path += size;
  }
  return true;
}

// "/proc/self/fd/N"
void name_of_descriptor(int fd, char (&name)[32]) {
  char digits[12];
  unsigned count = 0;
  for (unsigned rest = static_cast<unsigned>(fd); count == 0 || rest; rest /= 10)
    digits[count++] = static_cast<char>('0' + rest % 10);
  memcpy(name, "/proc/self/fd/", 14);
  char* at = name + 14;
  while (count) *at++ = digits[--count];
  *at = 0;
}

bool append_directory(char (&out)[PATH_MAX], std::size_t& length, int directory) {
  char place[PATH_MAX];
  if (directory == AT_FDCWD) {
    if (raw_syscall(SYS_getcwd, reinterpret_cast<long>(place), sizeof place) < 0) return false;
  } else {
    char name[32];
    if (directory < 0) return false;
    name_of_descriptor(directory, name);
    const long size = raw_syscall(SYS_readlink, reinterpret_cast<long>(name), reinterpret_cast<long>(place),
                                  sizeof place - 1);
    if (size < 0) return false;
    place[size] = 0;
  }
  return append(out, length, place);
}

bool resolves_to_device(int directory, const char* path) {
  char whole[PATH_MAX];
  std::size_t length = 0;
  if (*path != '/' && !append_directory(whole, length, directory)) return false;
  if (!append(whole, length, path)) return false;
  return length == sizeof kDevice - 1 && memcmp(whole, kDevice, length) == 0;
}

}  // namespace

// A bad pointer faults here where the kernel would answer EFAULT; programs that pass one to open(2) on
// purpose are test suites, so only null is looked after.
bool names_device(int directory, const char* path) {
  if (!path) return false;
  const std::size_t size = strlen(path);
  if (size < 3 || memcmp(path + size - 3, "kvm", 3) != 0) return false;
  if (strcmp(path, kDevice) == 0) return true;
  if (size > 3 && path[size - 4] != '/') return false;
  return resolves_to_device(directory, path);
}

void fill_status(struct stat& status) {
  if (raw_syscall(SYS_stat, reinterpret_cast<long>("/dev/null"), reinterpret_cast<long>(&status)) < 0)
    status = {};
  status.st_mode = S_IFCHR | 0666;
  status.st_rdev = makedev(kMajor, kMinor);
  status.st_nlink = 1;
}

void fill_status(struct statx& status) {
  if (raw_syscall(SYS_statx, AT_FDCWD, reinterpret_cast<long>("/dev/null"), 0, STATX_BASIC_STATS,
                  reinterpret_cast<long>(&status)) < 0)
    status = {};
  status.stx_mask |= STATX_TYPE | STATX_MODE;
  status.stx_mode = S_IFCHR | 0666;
  status.stx_rdev_major = kMajor;
  status.stx_rdev_minor = kMinor;
  status.stx_nlink = 1;
}

}  // namespace anykvm::preload
