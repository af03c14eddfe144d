#include "resident/program_memory.h"

#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "base/raw_syscall.h"

namespace anykvm::resident {
namespace {

// Some containers forbid these calls, and some kernels lack them: then bad memory faults.
enum class Moved { kYes, kNo, kUnknown };

Moved move(long number, const iovec& ours, const iovec& programs) {
  const long moved = raw_syscall(number, raw_syscall(SYS_getpid), reinterpret_cast<long>(&ours), 1,
                                 reinterpret_cast<long>(&programs), 1, 0);
  if (moved == -EPERM || moved == -ENOSYS) return Moved::kUnknown;
  return moved == static_cast<long>(ours.iov_len) ? Moved::kYes : Moved::kNo;
}

}  // namespace

bool read_program(const void* from, void* to, std::size_t size) {
  const Moved moved = move(SYS_process_vm_readv, {to, size}, {const_cast<void*>(from), size});
  if (moved == Moved::kUnknown) memcpy(to, from, size);
  return moved != Moved::kNo;
}

bool write_program(void* to, const void* from, std::size_t size) {
  const Moved moved = move(SYS_process_vm_writev, {const_cast<void*>(from), size}, {to, size});
  if (moved == Moved::kUnknown) memcpy(to, from, size);
  return moved != Moved::kNo;
}

bool is_readable_string(const char* string) {
  constexpr u64 kPage = 4096;
  for (;;) {
    char first;
    if (!read_program(string, first)) return false;
    const std::size_t rest = kPage - (reinterpret_cast<u64>(string) & (kPage - 1));
    if (memchr(string, 0, rest)) return true;
    string += rest;
  }
}

bool are_readable_strings(const char* const* strings) {
  if (!strings) return true;
  for (;; ++strings) {
    const char* string;
    if (!read_program(strings, string)) return false;
    if (!string) return true;
    if (!is_readable_string(string)) return false;
  }
}

}  // namespace anykvm::resident
