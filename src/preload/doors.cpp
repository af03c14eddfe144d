#include "preload/doors.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "base/raw_syscall.h"

namespace anykvm::preload {
namespace {

std::atomic<long> g_process{0};  // in which the engine was loaded, or the child of a fork(2) of it

bool in_engine_process() { return raw_syscall(SYS_getpid) == g_process.load(std::memory_order_relaxed); }

const Engine* engine_for_this_process() {
  const bool first = !engine();
  const Engine* loaded = load_engine();
  if (!loaded || !first) return loaded;
  g_process.store(raw_syscall(SYS_getpid));
  pthread_atfork(nullptr, nullptr, [] { g_process.store(raw_syscall(SYS_getpid)); });
  return loaded;
}

// A descriptor of the device that an exec(2) or a socket brought here: a file of ours by its name.
bool is_inherited_device(int fd) {
  constexpr char kName[] = "/memfd:anykvm (deleted)";
  char link[32] = "/proc/self/fd/", target[sizeof kName];
  if (fd < 0) return false;
  char* at = link + 14;
  for (int unit = 1'000'000'000; unit; unit /= 10)
    if (fd >= unit || unit == 1) *at++ = static_cast<char>('0' + fd / unit % 10);
  *at = 0;
  const long size =
      raw_syscall(SYS_readlink, reinterpret_cast<long>(link), reinterpret_cast<long>(target), sizeof target);
  return size == sizeof kName - 1 && memcmp(target, kName, sizeof kName - 1) == 0;
}

}  // namespace

int open_device(int flags) {
  const Engine* loaded = engine_for_this_process();
  if (loaded) return loaded->open("/dev/kvm", flags);
  errno = ENODEV;
  return -1;
}

bool device_ioctl(int fd, unsigned long request, unsigned long argument, int* result) {
  const int saved_errno = errno;
  const Engine* loaded = engine();
  if (!loaded && is_inherited_device(fd)) loaded = engine_for_this_process();
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

void close_ours(unsigned first, unsigned last) {
  const Engine* loaded = engine();
  if (loaded && in_engine_process()) loaded->close_range(first, last);
}

void descriptor_replaced(int fd) {
  const Engine* loaded = engine();
  if (loaded && in_engine_process()) loaded->replaced(fd);
}

}  // namespace anykvm::preload
