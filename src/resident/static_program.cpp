// is_static_program() alone, for the preload library, too, which has no C++ library.
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>

#include "base/raw_syscall.h"
#include "resident/program_file.h"

namespace anykvm::resident {
namespace {

bool read_at(long fd, u64 offset, void* to, std::size_t size) {
  return raw_syscall(SYS_pread64, fd, reinterpret_cast<long>(to), static_cast<long>(size),
                     static_cast<long>(offset)) == static_cast<long>(size);
}

}  // namespace

bool read_header(long fd, Elf64_Ehdr& header) {
  return read_at(fd, 0, &header, sizeof header) && memcmp(header.e_ident, ELFMAG, SELFMAG) == 0 &&
         header.e_ident[EI_CLASS] == ELFCLASS64 && header.e_machine == EM_X86_64 &&
         (header.e_type == ET_EXEC || header.e_type == ET_DYN);
}

bool read_segment(long fd, const Elf64_Ehdr& header, unsigned number, Elf64_Phdr& segment) {
  return read_at(fd, header.e_phoff + u64{number} * header.e_phentsize, &segment, sizeof segment);
}

bool is_static_program(const char* path) {
  const long fd = raw_syscall(SYS_open, reinterpret_cast<long>(path), O_RDONLY | O_CLOEXEC, 0);
  if (fd < 0) return false;
  Elf64_Ehdr header;
  bool is = read_header(fd, header);
  Elf64_Phdr segment;
  for (unsigned i = 0; is && i < header.e_phnum; ++i)
    is = read_segment(fd, header, i, segment) && segment.p_type != PT_INTERP;
  raw_syscall(SYS_close, fd);
  return is;
}

}  // namespace anykvm::resident
