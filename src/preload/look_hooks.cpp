// Hooks of the functions by which a program looks whether there is a /dev/kvm and whether it may use it.
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "preload/doors.h"
#include "preload/real.h"

namespace anykvm::preload {
namespace {

// 64-bit programs have one struct stat under all names.
static_assert(sizeof(struct stat) == sizeof(struct stat64));

using Stat = int(const char*, struct stat*);
using StatAt = int(int, const char*, struct stat*, int);
using OldStat = int(int, const char*, struct stat*);
using OldStatAt = int(int, int, const char*, struct stat*, int);

int answer(struct stat* status) {
  fill_status(*status);
  return 0;
}

// It is no symbolic link.
ssize_t refuse_link() {
  errno = EINVAL;
  return -1;
}

// Everybody may read and write, nobody may execute.
int answer_access(int mode) {
  if (!(mode & X_OK)) return 0;
  errno = EACCES;
  return -1;
}

}  // namespace

#define ANYKVM_STAT_HOOK(symbol)                                    \
  static constinit Real<Stat> real_##symbol{#symbol};               \
  int hook_##symbol(const char*, struct stat*) ANYKVM_HOOK(symbol); \
  int hook_##symbol(const char* path, struct stat* status) {        \
    if (is_our_device(AT_FDCWD, path)) return answer(status);       \
    return real_##symbol(path, status);                             \
  }
#define ANYKVM_STATAT_HOOK(symbol)                                                     \
  static constinit Real<StatAt> real_##symbol{#symbol};                                \
  int hook_##symbol(int, const char*, struct stat*, int) ANYKVM_HOOK(symbol);          \
  int hook_##symbol(int directory, const char* path, struct stat* status, int flags) { \
    if (is_device_at(directory, path, flags)) return answer(status);                   \
    return real_##symbol(directory, path, status, flags);                              \
  }
// What programs built against glibc before 2.33 call.
#define ANYKVM_OLD_STAT_HOOK(symbol)                                      \
  static constinit Real<OldStat> real_##symbol{#symbol};                  \
  int hook_##symbol(int, const char*, struct stat*) ANYKVM_HOOK(symbol);  \
  int hook_##symbol(int version, const char* path, struct stat* status) { \
    if (is_our_device(AT_FDCWD, path)) return answer(status);             \
    return real_##symbol(version, path, status);                          \
  }
#define ANYKVM_OLD_STATAT_HOOK(symbol)                                                              \
  static constinit Real<OldStatAt> real_##symbol{#symbol};                                          \
  int hook_##symbol(int, int, const char*, struct stat*, int) ANYKVM_HOOK(symbol);                  \
  int hook_##symbol(int version, int directory, const char* path, struct stat* status, int flags) { \
    if (is_device_at(directory, path, flags)) return answer(status);                                \
    return real_##symbol(version, directory, path, status, flags);                                  \
  }

ANYKVM_STAT_HOOK(stat)
ANYKVM_STAT_HOOK(stat64)
ANYKVM_STAT_HOOK(lstat)
ANYKVM_STAT_HOOK(lstat64)
ANYKVM_STATAT_HOOK(fstatat)
ANYKVM_STATAT_HOOK(fstatat64)
ANYKVM_OLD_STAT_HOOK(__xstat)
ANYKVM_OLD_STAT_HOOK(__xstat64)
ANYKVM_OLD_STAT_HOOK(__lxstat)
ANYKVM_OLD_STAT_HOOK(__lxstat64)
ANYKVM_OLD_STATAT_HOOK(__fxstatat)
ANYKVM_OLD_STATAT_HOOK(__fxstatat64)

// Programs look at what they have opened, too.
#define ANYKVM_FSTAT_HOOK(symbol)                                       \
  static constinit Real<int(int, struct stat*)> real_##symbol{#symbol}; \
  int hook_##symbol(int, struct stat*) ANYKVM_HOOK(symbol);             \
  int hook_##symbol(int fd, struct stat* status) {                      \
    if (is_device(fd)) return answer(status);                           \
    return real_##symbol(fd, status);                                   \
  }
#define ANYKVM_OLD_FSTAT_HOOK(symbol)                                        \
  static constinit Real<int(int, int, struct stat*)> real_##symbol{#symbol}; \
  int hook_##symbol(int, int, struct stat*) ANYKVM_HOOK(symbol);             \
  int hook_##symbol(int version, int fd, struct stat* status) {              \
    if (is_device(fd)) return answer(status);                                \
    return real_##symbol(version, fd, status);                               \
  }

ANYKVM_FSTAT_HOOK(fstat)
ANYKVM_FSTAT_HOOK(fstat64)
ANYKVM_OLD_FSTAT_HOOK(__fxstat)
ANYKVM_OLD_FSTAT_HOOK(__fxstat64)

static constinit Real<int(int, const char*, int, unsigned, struct statx*)> real_statx{"statx"};
int hook_statx(int, const char*, int, unsigned, struct statx*) ANYKVM_HOOK(statx);
int hook_statx(int directory, const char* path, int flags, unsigned mask, struct statx* status) {
  if (!is_device_at(directory, path, flags)) return real_statx(directory, path, flags, mask, status);
  fill_status(*status);
  return 0;
}

#define ANYKVM_ACCESS_HOOK(symbol)                                     \
  static constinit Real<int(const char*, int)> real_##symbol{#symbol}; \
  int hook_##symbol(const char*, int) ANYKVM_HOOK(symbol);             \
  int hook_##symbol(const char* path, int mode) {                      \
    if (is_our_device(AT_FDCWD, path)) return answer_access(mode);     \
    return real_##symbol(path, mode);                                  \
  }

ANYKVM_ACCESS_HOOK(access)
ANYKVM_ACCESS_HOOK(euidaccess)
ANYKVM_ACCESS_HOOK(eaccess)

static constinit Real<int(int, const char*, int, int)> real_faccessat{"faccessat"};
int hook_faccessat(int, const char*, int, int) ANYKVM_HOOK(faccessat);
int hook_faccessat(int directory, const char* path, int mode, int flags) {
  if (is_our_device(directory, path)) return answer_access(mode);
  return real_faccessat(directory, path, mode, flags);
}

// The device is no symbolic link.
static constinit Real<ssize_t(const char*, char*, std::size_t)> real_readlink{"readlink"};
ssize_t hook_readlink(const char*, char*, std::size_t) ANYKVM_HOOK(readlink);
ssize_t hook_readlink(const char* path, char* out, std::size_t size) {
  return is_our_device(AT_FDCWD, path) ? refuse_link() : real_readlink(path, out, size);
}

static constinit Real<ssize_t(int, const char*, char*, std::size_t)> real_readlinkat{"readlinkat"};
ssize_t hook_readlinkat(int, const char*, char*, std::size_t) ANYKVM_HOOK(readlinkat);
ssize_t hook_readlinkat(int directory, const char* path, char* out, std::size_t size) {
  return is_our_device(directory, path) ? refuse_link() : real_readlinkat(directory, path, out, size);
}

// The forms that -D_FORTIFY_SOURCE makes of calls with a buffer whose size is known.
static constinit Real<ssize_t(const char*, char*, std::size_t, std::size_t)> real_readlink_chk{
    "__readlink_chk"};
ssize_t hook_readlink_chk(const char*, char*, std::size_t, std::size_t) ANYKVM_HOOK(__readlink_chk);
ssize_t hook_readlink_chk(const char* path, char* out, std::size_t size, std::size_t room) {
  return is_our_device(AT_FDCWD, path) ? refuse_link() : real_readlink_chk(path, out, size, room);
}

static constinit Real<ssize_t(int, const char*, char*, std::size_t, std::size_t)> real_readlinkat_chk{
    "__readlinkat_chk"};
ssize_t hook_readlinkat_chk(int, const char*, char*, std::size_t, std::size_t) ANYKVM_HOOK(__readlinkat_chk);
ssize_t hook_readlinkat_chk(int directory, const char* path, char* out, std::size_t size, std::size_t room) {
  return is_our_device(directory, path) ? refuse_link()
                                        : real_readlinkat_chk(directory, path, out, size, room);
}

static constinit Real<char*(const char*, char*)> real_realpath{"realpath"};
char* hook_realpath(const char*, char*) ANYKVM_HOOK(realpath);
char* hook_realpath(const char* path, char* out) {
  if (!is_our_device(AT_FDCWD, path)) return real_realpath(path, out);
  return out ? strcpy(out, "/dev/kvm") : strdup("/dev/kvm");
}

static constinit Real<char*(const char*, char*, std::size_t)> real_realpath_chk{"__realpath_chk"};
char* hook_realpath_chk(const char*, char*, std::size_t) ANYKVM_HOOK(__realpath_chk);
char* hook_realpath_chk(const char* path, char* out, std::size_t room) {
  if (!is_our_device(AT_FDCWD, path)) return real_realpath_chk(path, out, room);
  return strcpy(out, "/dev/kvm");  // a fortified buffer has room for PATH_MAX
}

}  // namespace anykvm::preload
