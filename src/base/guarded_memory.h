#pragma once
// Access to memory that may go away at any time, since it is the client's: guest RAM above all. Where it is
// not there, the access fails instead of the process. For addresses that are checked already and for hot
// paths; base/client_memory.h is for pointers that came with an ioctl. Owner: nobody. Any thread on which
// SIGSEGV and SIGBUS are not blocked, in a process whose handlers of these two ask guarded_landing()
// (x86/translate/host_signals). The functions use no vector registers.

#include <optional>

#include "base/types.h"

namespace anykvm {

extern "C" {
// 1, 2, 4, 8 and 16 bytes are moved as a whole or as two halves of 8. False: not (all) accessible.
bool anykvm_guarded_copy(void* to, const void* from, std::size_t size);
// `size` is a multiple of 64. 1: equal; 2: not; 0: not accessible.
u32 anykvm_guarded_compare(const void* a, const void* b, std::size_t size);
// `size` is 1, 2, 4 or 8. LOCK CMPXCHG. 1: `desired` is there now; 2: `*expected` is what is there; 0: not
// accessible.
u32 anykvm_guarded_compare_exchange(void* at, u64* expected, u64 desired, u32 size);
// REP MOVS and REP STOS, upwards. False: not (all) accessible.
bool anykvm_guarded_movs(void* to, const void* from, u64 elements, u32 size);
bool anykvm_guarded_stos(void* to, u64 value, u64 elements, u32 size);
}

enum class Guarded : u8 { kFault = 0, kYes = 1, kNo = 2 };

inline bool guarded_copy(void* to, const void* from, std::size_t size) {
  return anykvm_guarded_copy(to, from, size);
}
inline Guarded guarded_equal(const void* a, const void* b, std::size_t size) {
  return static_cast<Guarded>(anykvm_guarded_compare(a, b, size));
}

inline Guarded guarded_compare_exchange(void* at, u64* expected, u64 desired, unsigned size) {
  return static_cast<Guarded>(anykvm_guarded_compare_exchange(at, expected, desired, size));
}

// Replaces the value of `size` bytes by change(value), atomically. The value before, or nothing.
template <class Change>
std::optional<u64> guarded_update(void* at, unsigned size, Change change) {
  u64 before = 0;
  if (!guarded_copy(&before, at, size)) return std::nullopt;
  for (;;) {
    switch (guarded_compare_exchange(at, &before, change(before), size)) {
      case Guarded::kFault:
        return std::nullopt;
      case Guarded::kYes:
        return before;
      case Guarded::kNo:
        break;
    }
  }
}

// The process has such handlers from now on.
void guarded_memory_is_ready();
bool guarded_memory_ready();

// For signal handlers: the host's address that just faulted, of guest RAM for all we know. The thread's last
// one.
void note_guarded_fault(const void* address);
const u8* guarded_fault_address();

// For signal handlers: where to go on if the instruction at `pc` is such an access and faulted; else null.
const u8* guarded_landing(const u8* pc);

}  // namespace anykvm
