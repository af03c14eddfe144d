#pragma once
// Memory for generated code, written through one mapping and executed through another (W^X).
// Owner: CodeCache. Allocation and writing under CodeCache's mutex.

#include <memory>

#include "base/expected.h"
#include "base/types.h"

namespace anykvm::x86 {

class CodeMemory {
 public:
  // `size` bytes of address space; memory is used as code is put there. Fails with the errno of memfd_create
  // or mmap (EACCES or EPERM where a security policy forbids executable mappings).
  static Result<std::unique_ptr<CodeMemory>> create(std::size_t size);
  ~CodeMemory();
  CodeMemory(const CodeMemory&) = delete;
  CodeMemory& operator=(const CodeMemory&) = delete;

  // Where the next code will be executed, aligned to 16 bytes.
  u8* next() const { return m_exec + m_used; }
  std::size_t room() const { return m_size - m_used; }
  // Copies code to next() and advances; null if there is no room.
  u8* put(const void* code, std::size_t size);
  // The writable twin of an executable address.
  u8* writable(const u8* exec) const { return m_write + (exec - m_exec); }
  // Executable addresses by their distance from begin().
  u8* at(u32 offset) const { return m_exec + offset; }
  u32 offset_of(const u8* exec) const { return static_cast<u32>(exec - m_exec); }
  const u8* begin() const { return m_exec; }
  const u8* end() const { return m_exec + m_size; }
  bool contains(const u8* exec) const { return exec >= m_exec && exec < m_exec + m_size; }
  // Forgets everything after `mark` (an earlier next()).
  void rewind(const u8* mark) { m_used = static_cast<std::size_t>(mark - m_exec); }

 private:
  CodeMemory() = default;
  u8* m_exec = nullptr;
  u8* m_write = nullptr;
  std::size_t m_size = 0;
  std::size_t m_used = 0;
};

}  // namespace anykvm::x86
