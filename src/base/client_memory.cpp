#include "base/client_memory.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <mutex>

#include "base/fd.h"
#include "base/fork.h"
#include "base/guarded_memory.h"

namespace anykvm {
namespace {

constexpr Error kFault{EFAULT, "the client's address is not accessible"};

// Once a VM exists, faults are ours to handle, and a copy costs no system call.
Result<> copy_directly(void* to, const void* from, std::size_t size) {
  if (!guarded_copy(to, from, size)) return kFault;
  return {};
}

// Once process_vm_readv() turned out to be forbidden (seccomp filters of containers do that), it is not tried
// again.
std::atomic<bool> g_vm_copy_forbidden{false};

bool forbidden(int code) { return code == EPERM || code == ENOSYS; }

// pwrite() and pread() check the user's address as process_vm_readv() does; a memfd carries the bytes across.
Result<> copy_through_file(const void* from, void* to, std::size_t size) {
  static ProcessMutex mutex;
  static Fd carrier;
  static u32 generation;
  std::lock_guard lock(mutex);
  // A parent's would carry what both write.
  if (generation != fork_generation()) carrier.reset();
  generation = fork_generation();
  if (!carrier.valid()) carrier = out_of_the_way(Fd(memfd_create("anykvm:copy", MFD_CLOEXEC)));
  if (!carrier.valid()) return Error{errno, "no memfd to copy through"};
  const auto expected = static_cast<ssize_t>(size);
  if (pwrite(carrier.get(), from, size, 0) != expected) return kFault;
  if (pread(carrier.get(), to, size, 0) != expected) return kFault;
  return {};
}

}  // namespace

Result<> copy_from_client(void* to, u64 client_address, std::size_t size) {
  if (size == 0) return {};
  auto* from = reinterpret_cast<void*>(client_address);
  if (guarded_memory_ready()) return copy_directly(to, from, size);
  if (g_vm_copy_forbidden.load(std::memory_order_relaxed)) return copy_through_file(from, to, size);
  iovec local{to, size}, remote{from, size};
  ssize_t copied = process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
  if (copied == static_cast<ssize_t>(size)) return {};
  if (copied >= 0 || !forbidden(errno)) return kFault;
  g_vm_copy_forbidden = true;
  return copy_through_file(from, to, size);
}

Result<> copy_to_client(u64 client_address, const void* from, std::size_t size) {
  if (size == 0) return {};
  auto* to = reinterpret_cast<void*>(client_address);
  if (guarded_memory_ready()) return copy_directly(to, from, size);
  if (g_vm_copy_forbidden.load(std::memory_order_relaxed)) return copy_through_file(from, to, size);
  iovec local{const_cast<void*>(from), size}, remote{to, size};
  ssize_t copied = process_vm_writev(getpid(), &local, 1, &remote, 1, 0);
  if (copied == static_cast<ssize_t>(size)) return {};
  if (copied >= 0 || !forbidden(errno)) return kFault;
  g_vm_copy_forbidden = true;
  return copy_through_file(from, to, size);
}

}  // namespace anykvm
