#pragma once
// A system call of the resident program in a trap. Owner: the trap, on the program's thread, where libc's
// thread-local storage is the program's: nothing may be called here that uses it (errno among others).

#include <errno.h>
#include <ucontext.h>

#include <optional>

#include "base/types.h"
#include "preload/device_path.h"
#include "resident/program_memory.h"

namespace anykvm::resident {

struct Call {
  long number, a, b, c, d, e, f;
  ucontext_t& context;
};

// Each knows some calls. Nothing: the kernel shall do it as it is; else the result, minus an errno.
using Answer = std::optional<long>;
Answer call_on_file_name(const Call& call);
Answer call_on_descriptor(const Call& call);
Answer call_on_signals(const Call& call);
Answer call_on_process(const Call& call);

// clone3(2)'s, if there is memory.
std::optional<u64> clone3_flags(const Call& call);

// What the program is told of itself (set before it starts).
struct Identity {
  const char* program;   // its file
  const char* anykvm;    // ours
  const char* preload;   // "LD_PRELOAD=..." for children that are linked dynamically
  const char* hardware;  // "ANYKVM_PREFER_HARDWARE=..." for the same, or null
};
extern Identity g_identity;

// "/proc/self/exe" and its like, which for the kernel is anykvm.
bool names_program(const char* path);

// What stat(2), or statx(2) by its structure, says of the device.
template <class Status>
long give_device_status(long to) {
  Status status;
  preload::fill_status(status);
  return write_program(reinterpret_cast<Status*>(to), status) ? 0 : -EFAULT;
}

// "/proc/self/fd/N"
void name_descriptor(int fd, char (&name)[32]);

}  // namespace anykvm::resident
