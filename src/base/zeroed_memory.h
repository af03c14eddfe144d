#pragma once
// For large objects of which most stays zero and unused: derived from InZeroedMemory they get pages of their
// own, zeros as the kernel gives them, so what nobody touches takes neither time nor memory. Their
// constructors leave alone what is to be zero. Owner: who makes the object, by `new`. Any thread.

#include <sys/mman.h>

#include <cstddef>
#include <new>

namespace anykvm {

struct InZeroedMemory {
  static void* operator new(std::size_t size) {
    void* pages =
        mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED) throw std::bad_alloc();  // as any other `new`
    return pages;
  }
  static void operator delete(void* object, std::size_t size) { munmap(object, size); }
};

}  // namespace anykvm
