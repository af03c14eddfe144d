#include "preload/doors.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "base/raw_syscall.h"
#include "preload/closing.h"
#include "preload/cpu_information.h"

namespace anykvm::preload {
namespace {

std::atomic<long> g_process{0};  // in which the engine was loaded, or the child of a fork(2) of it

bool in_engine_process() { return raw_syscall(SYS_getpid) == g_process.load(std::memory_order_relaxed); }

// What /proc/self/fd says of `fd`, if that is the name of a memfd of ours: without "/memfd:" and "
// (deleted)". False also for other files.
bool name_of_ours(int fd, char (&name)[48]) {
  constexpr char kPrefix[] = "/memfd:anykvm";
  constexpr std::size_t kMark = sizeof "/memfd:" - 1;
  char link[32] = "/proc/self/fd/", target[64];
  if (fd < 0) return false;
  char* at = link + 14;
  for (int unit = 1'000'000'000; unit; unit /= 10)
    if (fd >= unit || unit == 1) *at++ = static_cast<char>('0' + fd / unit % 10);
  *at = 0;
  const long size = raw_syscall(SYS_readlink, reinterpret_cast<long>(link), reinterpret_cast<long>(target),
                                sizeof target - 1);
  if (size < static_cast<long>(sizeof kPrefix - 1) || memcmp(target, kPrefix, sizeof kPrefix - 1) != 0)
    return false;
  target[size] = 0;
  if (char* space = strchr(target, ' ')) *space = 0;
  if (strlen(target) - kMark >= sizeof name) return false;
  strcpy(name, target + kMark);
  return true;
}

// A descriptor that an exec(2) or a socket brought here: a file of ours by its name.
bool is_inherited(int fd) {
  char name[48];
  return name_of_ours(fd, name);
}

int open_device(int flags) {
  if ((flags & O_CREAT) && (flags & O_EXCL)) return errno = EEXIST, -1;
  if (flags & O_DIRECTORY) return errno = ENOTDIR, -1;
  const Engine* loaded = engine_for_this_process();
  if (loaded) return loaded->open("/dev/kvm", flags);
  errno = ENODEV;
  return -1;
}

}  // namespace

const Engine* engine_for_this_process() {
  const bool first = !engine();
  const Engine* loaded = load_engine();
  if (!loaded || !first) return loaded;
  g_process.store(raw_syscall(SYS_getpid));
  pthread_atfork(nullptr, nullptr, [] { g_process.store(raw_syscall(SYS_getpid)); });
  return loaded;
}

bool open_ours(int directory, const char* path, int flags, int* fd) {
  if (is_our_device(directory, path))
    *fd = open_device(flags);
  else if (names_cpu_information(path, flags) && !hardware_wanted_and_working())
    *fd = open_cpu_information(flags);
  else
    return false;
  return true;
}

bool device_ioctl(int fd, unsigned long request, unsigned long argument, int* result) {
  const int saved_errno = errno;
  const Engine* loaded = engine();
  if (!loaded && is_inherited(fd)) loaded = engine_for_this_process();
  if (!loaded) return false;
  *result = loaded->ioctl(fd, request, argument);
  if (*result >= 0 || errno != ENOTTY || loaded->owns(fd)) return true;
  errno = saved_errno;
  return false;
}

const Engine* owner_of(int fd) {
  const Engine* loaded = engine();
  return loaded && fd >= 0 && in_engine_process() && loaded->owns(fd) ? loaded : nullptr;
}

bool is_device_at(int directory, const char* path, int flags) {
  if (is_our_device(directory, path)) return true;
  return (flags & AT_EMPTY_PATH) && path && !*path && is_device(directory);
}

bool is_device(int fd) {
  char name[48];
  return owner_of(fd) && name_of_ours(fd, name) && strcmp(name, "anykvm") == 0;
}

void close_ours(unsigned first, unsigned last) {
  const Engine* loaded = engine();
  if (loaded && in_engine_process()) loaded->close_range(first, last);
}

unsigned first_held(unsigned first, unsigned last) {
  const Engine* loaded = engine();
  return loaded && in_engine_process() ? loaded->first_held(first, last) : ~0u;
}

void descriptor_replaced(int fd) {
  const Engine* loaded = engine();
  if (loaded && in_engine_process()) loaded->replaced(fd);
}

}  // namespace anykvm::preload
