#include "resident/heap.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "base/raw_syscall.h"
#include "resident/spin_lock.h"

namespace anykvm::resident {
namespace {

constexpr u64 kMostRoom = u64{256} << 30, kLeastRoom = 16 << 20, kPage = 4096;
u64 g_room = kMostRoom;                    // less where addresses are limited (RLIMIT_AS)
u64 g_begin = 0, g_end = 0, g_usable = 0;  // g_lock; usable up to a page's end
LeafLock g_lock;

u64 page_up(u64 address) { return (address + kPage - 1) & ~(kPage - 1); }

bool make_usable(u64 end) {
  if (end > g_usable && raw_syscall(SYS_mprotect, static_cast<long>(g_usable),
                                    static_cast<long>(end - g_usable), PROT_READ | PROT_WRITE) < 0)
    return false;
  // What is given back reads as zero when it is taken again.
  if (end < g_usable)
    raw_syscall(SYS_mmap, static_cast<long>(end), static_cast<long>(g_usable - end), PROT_NONE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  g_usable = end;
  return true;
}

}  // namespace

Result<> make_heap() {
  void* room = MAP_FAILED;
  for (g_room = kMostRoom; room == MAP_FAILED && g_room > kLeastRoom;)
    room = mmap(nullptr, g_room /= 4, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) return Error{errno, "no addresses for a heap"};
  g_begin = g_end = g_usable = reinterpret_cast<u64>(room);
  return {};
}

long change_heap_end(u64 end) {
  g_lock.lock();
  if (end >= g_begin && end <= g_begin + g_room && make_usable(page_up(end))) g_end = end;
  const long result = static_cast<long>(g_end);
  g_lock.unlock();
  return result;
}

}  // namespace anykvm::resident
