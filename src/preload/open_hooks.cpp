// Hooks of the functions that open a file by its name.
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "preload/doors.h"
#include "preload/real.h"

namespace anykvm::preload {
namespace {

using Open = int(const char*, int, unsigned);
using OpenAt = int(int, const char*, int, unsigned);
using Open2 = int(const char*, int);
using OpenAt2 = int(int, const char*, int);

bool opens_our_stream(const char* path, const char* mode, FILE** stream) {
  const bool for_reading = *mode == 'r' && !strchr(mode, '+');
  int fd;
  if (!open_ours(AT_FDCWD, path, (for_reading ? O_RDONLY : O_RDWR) | (strchr(mode, 'e') ? O_CLOEXEC : 0),
                 &fd))
    return false;
  *stream = fd < 0 ? nullptr : fdopen(fd, mode);
  return true;
}

}  // namespace

#define ANYKVM_OPEN_HOOK(symbol)                                     \
  static constinit Real<Open> real_##symbol{#symbol};                \
  int hook_##symbol(const char*, int, unsigned) ANYKVM_HOOK(symbol); \
  int hook_##symbol(const char* path, int flags, unsigned mode) {    \
    int fd;                                                          \
    if (open_ours(AT_FDCWD, path, flags, &fd)) return fd;            \
    return real_##symbol(path, flags, mode);                         \
  }
#define ANYKVM_OPENAT_HOOK(symbol)                                               \
  static constinit Real<OpenAt> real_##symbol{#symbol};                          \
  int hook_##symbol(int, const char*, int, unsigned) ANYKVM_HOOK(symbol);        \
  int hook_##symbol(int directory, const char* path, int flags, unsigned mode) { \
    int fd;                                                                      \
    if (open_ours(directory, path, flags, &fd)) return fd;                       \
    return real_##symbol(directory, path, flags, mode);                          \
  }
// The forms that -D_FORTIFY_SOURCE makes of calls without a mode.
#define ANYKVM_OPEN_2_HOOK(symbol)                         \
  static constinit Real<Open2> real_##symbol{#symbol};     \
  int hook_##symbol(const char*, int) ANYKVM_HOOK(symbol); \
  int hook_##symbol(const char* path, int flags) {         \
    int fd;                                                \
    if (open_ours(AT_FDCWD, path, flags, &fd)) return fd;  \
    return real_##symbol(path, flags);                     \
  }
#define ANYKVM_OPENAT_2_HOOK(symbol)                              \
  static constinit Real<OpenAt2> real_##symbol{#symbol};          \
  int hook_##symbol(int, const char*, int) ANYKVM_HOOK(symbol);   \
  int hook_##symbol(int directory, const char* path, int flags) { \
    int fd;                                                       \
    if (open_ours(directory, path, flags, &fd)) return fd;        \
    return real_##symbol(directory, path, flags);                 \
  }

ANYKVM_OPEN_HOOK(open)
ANYKVM_OPEN_HOOK(open64)
ANYKVM_OPEN_HOOK(__open)
ANYKVM_OPEN_HOOK(__open64)
ANYKVM_OPENAT_HOOK(openat)
ANYKVM_OPENAT_HOOK(openat64)
ANYKVM_OPEN_2_HOOK(__open_2)
ANYKVM_OPEN_2_HOOK(__open64_2)
ANYKVM_OPENAT_2_HOOK(__openat_2)
ANYKVM_OPENAT_2_HOOK(__openat64_2)

// Streams: how programs look whether there is a file, too (std::ifstream ends here).
#define ANYKVM_FOPEN_HOOK(symbol)                                                \
  static constinit Real<FILE*(const char*, const char*)> real_##symbol{#symbol}; \
  FILE* hook_##symbol(const char*, const char*) ANYKVM_HOOK(symbol);             \
  FILE* hook_##symbol(const char* path, const char* mode) {                      \
    FILE* stream;                                                                \
    if (opens_our_stream(path, mode, &stream)) return stream;                    \
    return real_##symbol(path, mode);                                            \
  }

ANYKVM_FOPEN_HOOK(fopen)
ANYKVM_FOPEN_HOOK(fopen64)

}  // namespace anykvm::preload
