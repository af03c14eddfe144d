#include "resident/kept_signals.h"

#include <errno.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>

#include <array>

#include "base/raw_syscall.h"
#include "resident/program_memory.h"
#include "resident/spin_lock.h"

namespace anykvm::resident {
namespace {

struct Kept {
  int fd = -1;
  u64 mask = 0;
};
std::array<Kept, 512> g_kept;  // as many vCPUs as have a mask
LeafLock g_lock;
std::atomic<unsigned> g_count{0};

Kept* find(int fd) {
  for (Kept& kept : g_kept)
    if (kept.fd == fd) return &kept;
  return nullptr;
}

}  // namespace

long keep_signal_mask(int vcpu_fd, const kvm_signal_mask* mask) {
  if (!mask) return forget_signal_mask(vcpu_fd), 0;
  const auto* const at = reinterpret_cast<const u8*>(mask);
  u32 size = 0;
  u64 wanted = 0;
  if (!read_program(at, &size, sizeof size)) return -EFAULT;
  if (size != sizeof wanted) return -EINVAL;
  if (!read_program(at + sizeof size, &wanted, sizeof wanted)) return -EFAULT;
  g_lock.lock();
  Kept* kept = find(vcpu_fd);
  if (!kept && (kept = find(-1))) g_count.fetch_add(1);
  if (kept) *kept = {vcpu_fd, wanted};
  g_lock.unlock();
  return kept ? 0 : -ENOMEM;
}

void forget_signal_mask(int fd) {
  if (!g_count.load()) return;
  g_lock.lock();
  if (Kept* kept = find(fd)) {
    kept->fd = -1;
    g_count.fetch_sub(1);
  }
  g_lock.unlock();
}

long run_with_signals(Companion& companion, const Request& request, int vcpu_fd, u64 mask) {
  if (!g_count.load()) return companion.run(request, mask);
  g_lock.lock();
  const Kept* kept = find(vcpu_fd);
  const u64 inside = kept ? kept->mask : mask;
  g_lock.unlock();
  const u64 opened = mask & ~inside;
  if (!opened) return companion.run(request, mask | inside);
  const long pending = raw_syscall(SYS_signalfd4, -1, reinterpret_cast<long>(&opened), sizeof opened,
                                   SFD_CLOEXEC | SFD_NONBLOCK);
  if (pending < 0) return pending;
  const long result = companion.run(request, mask | inside, static_cast<int>(pending));
  raw_syscall(SYS_close, pending);
  return result;
}

}  // namespace anykvm::resident
