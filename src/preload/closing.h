#pragma once
// What becomes of descriptors that a program closes or puts others in the place of. What the engine has
// opened for itself stays: to the program it is not there. Owner: nobody. Any thread; nothing here locks or
// allocates unless KVM is in use.

#include <errno.h>

#include "preload/doors.h"

namespace anykvm::preload {

// Closes our descriptors from `first` to `last`.
void close_ours(unsigned first, unsigned last);

// `fd` may have been ours and stands for another file now.
void descriptor_replaced(int fd);

// The lowest descriptor from `first` to `last` that the engine keeps for itself. ~0u: none.
unsigned first_held(unsigned first, unsigned last);
inline bool is_held(int fd) {
  return fd >= 0 && first_held(static_cast<unsigned>(fd), static_cast<unsigned>(fd)) != ~0u;
}

// close(2): of ours, of the engine's (EBADF), or `real` does it.
template <class Close>
int close_one(int fd, Close&& real) {
  if (const Engine* engine = owner_of(fd)) return engine->close(fd);
  if (!is_held(fd)) return real();
  errno = EBADF;
  return -1;
}

// dup2(2) and dup3(2) onto `to`. EBUSY: the engine keeps that number.
template <class Dup>
int dup_onto(int to, Dup&& real) {
  if (is_held(to)) {
    errno = EBUSY;
    return -1;
  }
  const int result = real();
  if (result >= 0) descriptor_replaced(result);
  return result;
}

// close_range(2), around what the engine keeps.
template <class CloseRange>
int close_many(unsigned first, unsigned last, CloseRange&& real) {
  close_ours(first, last);
  for (;;) {
    const unsigned held = first_held(first, last);
    if (held == ~0u) return real(first, last);
    if (held > first && real(first, held - 1) < 0) return -1;
    if (held == last) return 0;
    first = held + 1;
  }
}

}  // namespace anykvm::preload
