#include "preload/cpu_information.h"

#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "base/raw_syscall.h"

namespace anykvm::preload {
namespace {

constexpr char kFile[] = "/proc/cpuinfo", kLine[] = "flags\t\t:";

bool is_intel() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(0, &eax, &ebx, &ecx, &edx) && ebx == signature_INTEL_ebx;
}

// Collects bytes and writes them out in pieces.
class Output {
 public:
  explicit Output(int fd) : m_fd(fd) {}
  void put(char byte) {
    if (m_size == sizeof m_bytes) flush();
    m_bytes[m_size++] = byte;
  }
  void put(const char* text) {
    while (*text) put(*text++);
  }
  bool flush() {
    for (unsigned at = 0; at < m_size && m_good;) {
      const long written = raw_syscall(SYS_write, m_fd, reinterpret_cast<long>(m_bytes + at), m_size - at);
      m_good = written > 0 || written == -EINTR;
      if (written > 0) at += static_cast<unsigned>(written);
    }
    m_size = 0;
    return m_good;
  }

 private:
  int m_fd;
  unsigned m_size = 0;
  bool m_good = true;
  char m_bytes[4096];
};

// Copies the text, with the flag at the end of each line of flags.
bool copy_with_flag(int from, int to) {
  const char* const flag = is_intel() ? " vmx" : " svm";
  Output out(to);
  char piece[4096];
  unsigned matched = 0;  // of kLine, in the line being read; beyond its length: another line
  for (;;) {
    const long size = raw_syscall(SYS_read, from, reinterpret_cast<long>(piece), sizeof piece);
    if (size == -EINTR) continue;
    if (size <= 0) return size == 0 && out.flush();
    for (const char* at = piece; at < piece + size; ++at) {
      constexpr unsigned kAll = sizeof kLine - 1, kOther = kAll + 1;
      if (*at == '\n') {
        if (matched == kAll) out.put(flag);
        matched = 0;
      } else if (matched < kAll) {
        matched = *at == kLine[matched] ? matched + 1 : kOther;
      }
      out.put(*at);
    }
  }
}

}  // namespace

bool cpu_shows_virtualization() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kVmx = 1 << 5, kSvm = 1 << 2;  // SDM 3C 24.6, APM 2 15.4
  if (is_intel()) return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & kVmx);
  return __get_cpuid(0x80000001, &eax, &ebx, &ecx, &edx) && (ecx & kSvm);
}

bool names_cpu_information(const char* path, int flags) {
  return path && (flags & O_ACCMODE) == O_RDONLY && !(flags & (O_PATH | O_DIRECTORY)) &&
         strcmp(path, kFile) == 0 && !cpu_shows_virtualization();
}

int open_cpu_information(int flags) {
  const long machine = raw_syscall(SYS_open, reinterpret_cast<long>(kFile), flags, 0);
  if (machine < 0) return errno = static_cast<int>(-machine), -1;
  const long copy =
      raw_syscall(SYS_memfd_create, reinterpret_cast<long>("cpuinfo"), flags & O_CLOEXEC ? MFD_CLOEXEC : 0);
  const bool copied = copy >= 0 && copy_with_flag(static_cast<int>(machine), static_cast<int>(copy));
  const long unused = copied ? machine : copy, used = copied ? copy : machine;
  raw_syscall(SYS_lseek, used, 0, SEEK_SET);
  if (unused >= 0) raw_syscall(SYS_close, unused);
  return static_cast<int>(used);
}

}  // namespace anykvm::preload
