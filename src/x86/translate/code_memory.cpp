#include "x86/translate/code_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/bits.h"

namespace anykvm::x86 {

Result<std::unique_ptr<CodeMemory>> CodeMemory::create(std::size_t size) {
  std::unique_ptr<CodeMemory> memory(new CodeMemory);
  memory->m_size = size;
  // Not a memfd: perf takes those for files, and then does not look into its map of generated code
  // (perf_map.h).
  constexpr int kFlags = MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE;
  void* write = mmap(nullptr, size, PROT_READ | PROT_WRITE, kFlags, -1, 0);
  // An old size of 0 makes a second mapping of shared pages (mremap(2)).
  void* exec = write == MAP_FAILED ? MAP_FAILED : mremap(write, 0, size, MREMAP_MAYMOVE);
  int code = errno;
  if (exec != MAP_FAILED && mprotect(exec, size, PROT_READ | PROT_EXEC) != 0) {
    code = errno;
    munmap(exec, size);
    exec = MAP_FAILED;
  }
  if (write != MAP_FAILED) memory->m_write = static_cast<u8*>(write);
  if (exec != MAP_FAILED) memory->m_exec = static_cast<u8*>(exec);
  if (!memory->m_write || !memory->m_exec) return Error{code, "executable memory is not permitted here"};
  return memory;
}

CodeMemory::~CodeMemory() {
  if (m_write) munmap(m_write, m_size);
  if (m_exec) munmap(m_exec, m_size);
}

u8* CodeMemory::put(const void* code, std::size_t size) {
  if (size > room()) return nullptr;
  u8* exec = next();
  std::memcpy(writable(exec), code, size);
  m_used = align_up(m_used + size, 16);
  if (m_used > m_size) m_used = m_size;
  return exec;
}

}  // namespace anykvm::x86
