// Hooks of the functions that use, copy or close a descriptor. fcntl(F_DUPFD) needs none: the engine knows
// its files by their inodes.
#include <errno.h>
#include <limits.h>
#include <linux/close_range.h>
#include <sys/mman.h>

#include "base/raw_syscall.h"
#include "preload/closing.h"
#include "preload/doors.h"
#include "preload/real.h"

namespace anykvm::preload {
namespace {

constinit Real<int(int, unsigned long, unsigned long)> real_ioctl{"ioctl"};
constinit Real<void*(void*, std::size_t, int, int, int, off_t)> real_mmap{"mmap"};
constinit Real<void*(void*, std::size_t, int, int, int, off_t)> real_mmap64{"mmap64"};
constinit Real<int(int, int, off_t, off_t)> real_fallocate{"fallocate"};
constinit Real<int(int, int, off_t, off_t)> real_fallocate64{"fallocate64"};
constinit Real<int(int)> real_close{"close"};
constinit Real<int(int)> real___close{"__close"};
constinit Real<int(unsigned, unsigned, int)> real_close_range{"close_range"};
constinit Real<void(int)> real_closefrom{"closefrom"};
constinit Real<int(int, int)> real_dup2{"dup2"};
constinit Real<int(int, int)> real___dup2{"__dup2"};
constinit Real<int(int, int, int)> real_dup3{"dup3"};

template <class RealMap>
void* map(RealMap& real, void* address, std::size_t length, int protection, int flags, int fd, off_t offset) {
  if (!(flags & MAP_ANONYMOUS))
    if (const Engine* engine = owner_of(fd))
      return engine->mmap(address, length, protection, flags, fd, offset);
  return real(address, length, protection, flags, fd, offset);
}

}  // namespace

int hook_ioctl(int, unsigned long, unsigned long) ANYKVM_HOOK(ioctl);
int hook_ioctl(int fd, unsigned long request, unsigned long argument) {
  int result = 0;
  if (is_kvm_request(request) && device_ioctl(fd, request, argument, &result)) return result;
  return real_ioctl(fd, request, argument);
}

void* hook_mmap(void*, std::size_t, int, int, int, off_t) ANYKVM_HOOK(mmap);
void* hook_mmap(void* address, std::size_t length, int protection, int flags, int fd, off_t offset) {
  return map(real_mmap, address, length, protection, flags, fd, offset);
}

void* hook_mmap64(void*, std::size_t, int, int, int, off_t) ANYKVM_HOOK(mmap64);
void* hook_mmap64(void* address, std::size_t length, int protection, int flags, int fd, off_t offset) {
  return map(real_mmap64, address, length, protection, flags, fd, offset);
}

int hook_fallocate(int, int, off_t, off_t) ANYKVM_HOOK(fallocate);
int hook_fallocate(int fd, int mode, off_t offset, off_t length) {
  if (const Engine* engine = owner_of(fd)) return engine->fallocate(fd, mode, offset, length);
  return real_fallocate(fd, mode, offset, length);
}

int hook_fallocate64(int, int, off_t, off_t) ANYKVM_HOOK(fallocate64);
int hook_fallocate64(int fd, int mode, off_t offset, off_t length) {
  if (const Engine* engine = owner_of(fd)) return engine->fallocate(fd, mode, offset, length);
  return real_fallocate64(fd, mode, offset, length);
}

int hook_close(int) ANYKVM_HOOK(close);
int hook_close(int fd) {
  return close_one(fd, [fd] { return real_close(fd); });
}

int hook___close(int) ANYKVM_HOOK(__close);
int hook___close(int fd) {
  return close_one(fd, [fd] { return real___close(fd); });
}

int hook_close_range(unsigned, unsigned, int) ANYKVM_HOOK(close_range);
int hook_close_range(unsigned first, unsigned last, int flags) {
  const auto real = real_close_range.get();
  if (!real) {
    errno = ENOSYS;
    return -1;
  }
  if (first > last || (flags & CLOSE_RANGE_CLOEXEC)) return real(first, last, flags);
  return close_many(first, last, [=](unsigned from, unsigned to) { return real(from, to, flags); });
}

void hook_closefrom(int) ANYKVM_HOOK(closefrom);
void hook_closefrom(int first) {
  const unsigned from = first < 0 ? 0 : static_cast<unsigned>(first);
  close_ours(from, UINT_MAX);
  if (first_held(from, UINT_MAX) == ~0u) return real_closefrom(first);
  close_many(from, UINT_MAX, [](unsigned begin, unsigned end) {
    return static_cast<int>(raw_syscall(SYS_close_range, begin, end, 0));
  });
}

int hook_dup2(int, int) ANYKVM_HOOK(dup2);
int hook_dup2(int from, int to) {
  return dup_onto(to, [=] { return real_dup2(from, to); });
}

int hook___dup2(int, int) ANYKVM_HOOK(__dup2);
int hook___dup2(int from, int to) {
  return dup_onto(to, [=] { return real___dup2(from, to); });
}

int hook_dup3(int, int, int) ANYKVM_HOOK(dup3);
int hook_dup3(int from, int to, int flags) {
  return dup_onto(to, [=] { return real_dup3(from, to, flags); });
}

}  // namespace anykvm::preload
