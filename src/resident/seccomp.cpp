#include "resident/seccomp.h"

#include <errno.h>
#include <link.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <array>

#include "base/raw_syscall.h"
#include "resident/code_area.h"
#include "resident/program_memory.h"

namespace anykvm::resident {
namespace {

constexpr std::size_t kRanges = 32, kPerRange = 6;
std::array<CodeRange, kRanges> g_ranges;
std::size_t g_count = 0;

void note(u64 begin, u64 size) {
  // A filter compares the halves of addresses one by one.
  const u64 boundary = (begin | 0xffffffff) + 1;
  if (begin + size > boundary) {
    note(begin, boundary - begin);
    return note(boundary, begin + size - boundary);
  }
  if (g_count < kRanges) g_ranges[g_count++] = {begin, size};
}

constexpr u32 kPointer = offsetof(seccomp_data, instruction_pointer);

sock_filter* let_range_through(sock_filter* at, const CodeRange& range) {
  const u64 end = range.begin + range.size;  // up to 4 GiB: the half of the last address is compared
  *at++ = BPF_STMT(BPF_LD | BPF_W | BPF_ABS, kPointer + 4);
  *at++ = BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<u32>(range.begin >> 32), 0, 4);
  *at++ = BPF_STMT(BPF_LD | BPF_W | BPF_ABS, kPointer);
  *at++ = BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, static_cast<u32>(range.begin), 0, 2);
  *at++ = BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, static_cast<u32>(end - 1), 1, 0);
  *at++ = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  return at;
}

// With `fprog` in the place of the program's. The copy is the kernel's once the call returns.
template <class Install>
long with_our_beginning(const sock_fprog& fprog, Install&& install) {
  const std::size_t ours = g_count * kPerRange, count = ours + fprog.len;
  if (!fprog.len || count > BPF_MAXINSNS) return -EINVAL;
  const long memory = raw_syscall(SYS_mmap, 0, static_cast<long>(count * sizeof(sock_filter)),
                                  PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory < 0 && memory > -4096) return -ENOMEM;
  auto* const filter = reinterpret_cast<sock_filter*>(memory);
  sock_filter* at = filter;
  for (std::size_t i = 0; i < g_count; ++i) at = let_range_through(at, g_ranges[i]);
  sock_fprog extended{static_cast<unsigned short>(count), filter};
  const long result = read_program(fprog.filter, at, fprog.len * sizeof *at)
                          ? install(reinterpret_cast<long>(&extended))
                          : -EFAULT;
  raw_syscall(SYS_munmap, memory, static_cast<long>(count * sizeof(sock_filter)));
  return result;
}

}  // namespace

void note_our_code() {
  const CodeRange area = our_own_code();
  note(area.begin, area.size);
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void*) {
        if (strstr(info->dlpi_name, "vdso")) return 0;  // the program's as well
        for (unsigned i = 0; i < info->dlpi_phnum; ++i) {
          const auto& segment = info->dlpi_phdr[i];
          if (segment.p_type == PT_LOAD && (segment.p_flags & PF_X))
            note(info->dlpi_addr + segment.p_vaddr, segment.p_memsz);
        }
        return 0;
      },
      nullptr);
}

Answer call_on_seccomp(const Call& call) {
  const bool by_prctl = call.number == SYS_prctl && call.a == PR_SET_SECCOMP && call.b == SECCOMP_MODE_FILTER;
  const bool by_seccomp = call.number == SYS_seccomp && call.a == SECCOMP_SET_MODE_FILTER;
  if (!by_prctl && !by_seccomp) return std::nullopt;
  sock_fprog fprog;
  if (!read_program(reinterpret_cast<const sock_fprog*>(call.c), fprog)) return std::nullopt;
  return with_our_beginning(fprog, [&](long extended) {
    return raw_syscall(call.number, call.a, call.b, extended, call.d, call.e);
  });
}

}  // namespace anykvm::resident
