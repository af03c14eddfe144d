#include "x86/translate/record_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>

#include "base/bits.h"

namespace anykvm::x86 {
namespace {

constexpr std::size_t kStep = 1u << 20;

}  // namespace

Result<std::unique_ptr<RecordMemory>> RecordMemory::create(std::size_t size) {
  void* memory = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return Error{errno, "no address space for the records of translated code"};
  return std::unique_ptr<RecordMemory>(new RecordMemory(static_cast<u8*>(memory), size));
}

RecordMemory::~RecordMemory() { munmap(m_memory, m_size); }

bool RecordMemory::reserve(std::size_t bytes) {
  if (bytes > m_size - m_used) return false;
  if (m_used + bytes <= m_open) return true;
  const std::size_t open = std::min(align_up(m_used + bytes, kStep), m_size);
  if (mprotect(m_memory, open, PROT_READ | PROT_WRITE) != 0) return false;
  m_open = open;
  return true;
}

void RecordMemory::clear() {
  madvise(m_memory, m_used, MADV_DONTNEED);
  m_used = kFirst;
}

}  // namespace anykvm::x86
