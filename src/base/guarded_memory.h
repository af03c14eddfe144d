#pragma once
// Access to memory that may go away at any time, since it is the client's: guest RAM above all. Where it is
// not there, the access fails instead of the process. For addresses that are checked already and for hot
// paths; base/client_memory.h is for pointers that came with an ioctl. Owner: nobody. Any thread on which
// SIGSEGV and SIGBUS are not blocked, in a process whose handlers of these two ask guarded_landing()
// (x86/translate/host_signals). The functions use no vector registers.

#include "base/types.h"

namespace anykvm {

extern "C" {
// 1, 2, 4, 8 and 16 bytes are moved as a whole or as two halves of 8. False: not (all) accessible.
bool anykvm_guarded_copy(void* to, const void* from, std::size_t size);
// `size` is a multiple of 64. 1: equal; 2: not; 0: not accessible.
u32 anykvm_guarded_compare(const void* a, const void* b, std::size_t size);
}

enum class Guarded : u8 { kFault = 0, kYes = 1, kNo = 2 };

inline bool guarded_copy(void* to, const void* from, std::size_t size) {
  return anykvm_guarded_copy(to, from, size);
}
inline Guarded guarded_equal(const void* a, const void* b, std::size_t size) {
  return static_cast<Guarded>(anykvm_guarded_compare(a, b, size));
}

// The process has such handlers from now on.
void guarded_memory_is_ready();
bool guarded_memory_ready();

// For signal handlers: where to go on if the instruction at `pc` is such an access and faulted; else null.
const u8* guarded_landing(const u8* pc);

}  // namespace anykvm
