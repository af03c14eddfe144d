#pragma once
// System calls that no C library function stands for or that must not pass through one: the preload library
// hooks the C library's, also those that the engine itself would call. Owner: nobody. Any thread.

#include <sys/syscall.h>

namespace anykvm {

// The result, or minus the errno. Leaves errno alone.
inline long raw_syscall(long number, long a = 0, long b = 0, long c = 0, long d = 0, long e = 0, long f = 0) {
  long result;
  register long r10 asm("r10") = d;
  register long r8 asm("r8") = e;
  register long r9 asm("r9") = f;
  asm volatile("syscall"
               : "=a"(result)
               : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
               : "rcx", "r11", "memory");
  return result;
}

}  // namespace anykvm
