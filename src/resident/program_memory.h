#pragma once
// Memory that the resident program names in a system call and that may not be there: what the kernel answers
// by EFAULT. It looks, so nothing faults. Owner: nobody. Any thread, in traps too.

#include <cstddef>

#include "base/types.h"

namespace anykvm::resident {

// All of it, or false.
bool read_program(const void* from, void* to, std::size_t size);
bool write_program(void* to, const void* from, std::size_t size);

template <class T>
bool read_program(const T* from, T& to) {
  return read_program(from, &to, sizeof to);
}
template <class T>
bool write_program(T* to, const T& from) {
  return write_program(to, &from, sizeof from);
}

// Up to its end.
bool is_readable_string(const char* string);
// A list with null behind its last string, or null itself. Execve(2) takes both.
bool are_readable_strings(const char* const* strings);

}  // namespace anykvm::resident
