#include "x86/translate/code_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/bits.h"

namespace anykvm::x86 {

Result<std::unique_ptr<CodeMemory>> CodeMemory::create(std::size_t size) {
  int fd = memfd_create("anykvm-code", MFD_CLOEXEC);
  if (fd < 0) return Error{errno, "no memory file for generated code"};
  std::unique_ptr<CodeMemory> memory(new CodeMemory);
  memory->m_size = size;
  void* write = MAP_FAILED;
  void* exec = MAP_FAILED;
  if (ftruncate(fd, static_cast<off_t>(size)) == 0) {
    write = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    exec = mmap(nullptr, size, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
  }
  int code = errno;
  close(fd);
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
