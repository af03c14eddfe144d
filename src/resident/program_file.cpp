#include "resident/program_file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "base/fd.h"

namespace anykvm::resident {
namespace {

constexpr u64 kPage = 4096;
u64 page_down(u64 address) { return address & ~(kPage - 1); }
u64 page_up(u64 address) { return page_down(address + kPage - 1); }

int protection_of(const Elf64_Phdr& segment) {
  return (segment.p_flags & PF_R ? PROT_READ : 0) | (segment.p_flags & PF_W ? PROT_WRITE : 0) |
         (segment.p_flags & PF_X ? PROT_EXEC : 0);
}

// The addresses of all segments, taken. What is added to those in the file.
Result<u64> take_addresses(const std::vector<Elf64_Phdr>& segments, bool anywhere) {
  u64 begin = ~u64{0}, end = 0, alignment = kPage;
  for (const auto& segment : segments) {
    begin = std::min(begin, page_down(segment.p_vaddr));
    end = std::max(end, page_up(segment.p_vaddr + segment.p_memsz));
    alignment = std::max<u64>(alignment, segment.p_align);
  }
  const u64 room = end - begin + (anywhere ? alignment - kPage : 0);
  void* wanted = anywhere ? nullptr : reinterpret_cast<void*>(begin);
  void* taken =
      mmap(wanted, room, PROT_NONE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (anywhere ? 0 : MAP_FIXED_NOREPLACE), -1, 0);
  if (taken == MAP_FAILED || (!anywhere && taken != wanted)) return Error{ENOMEM, "its addresses are taken"};
  if (!anywhere) return u64{0};
  const u64 first = reinterpret_cast<u64>(taken);
  return (first + alignment - 1) / alignment * alignment - begin;
}

Result<> map_segment(int fd, const Elf64_Phdr& segment, u64 moved) {
  const u64 begin = page_down(segment.p_vaddr + moved), in_page = segment.p_vaddr & (kPage - 1);
  const u64 file_end = segment.p_vaddr + moved + segment.p_filesz;
  const u64 end = page_up(segment.p_vaddr + moved + segment.p_memsz);
  const int protection = protection_of(segment);
  auto* const at = reinterpret_cast<u8*>(begin);
  const Error failed{ENOEXEC, "a segment cannot be mapped"};
  if (segment.p_filesz && mmap(at, in_page + segment.p_filesz, protection, MAP_PRIVATE | MAP_FIXED, fd,
                               static_cast<off_t>(segment.p_offset - in_page)) == MAP_FAILED)
    return failed;
  const u64 mapped_end = segment.p_filesz ? page_up(file_end) : begin;
  if (end > mapped_end && mmap(reinterpret_cast<void*>(mapped_end), end - mapped_end, protection,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
    return failed;
  // What the file has behind the segment is not the segment's.
  if (segment.p_filesz && segment.p_memsz > segment.p_filesz && (segment.p_flags & PF_W))
    memset(reinterpret_cast<void*>(file_end), 0, mapped_end - file_end);
  return {};
}

bool mentions_device(const Elf64_Phdr& segment, u64 moved) {
  constexpr char kDevice[] = "/dev/kvm";
  return (segment.p_flags & (PF_R | PF_W)) == PF_R &&
         memmem(reinterpret_cast<const void*>(segment.p_vaddr + moved), segment.p_filesz, kDevice,
                sizeof kDevice - 1);
}

}  // namespace

Result<Image> map_program(const char* path) {
  const Fd fd(open(path, O_RDONLY | O_CLOEXEC));
  const Error unreadable{ENOEXEC, "it is not as programs are"};
  Elf64_Ehdr header;
  if (!fd.valid() || !read_header(fd.get(), header)) return unreadable;
  std::vector<Elf64_Phdr> segments;
  u64 headers = 0;
  for (unsigned i = 0; i < header.e_phnum; ++i) {
    Elf64_Phdr segment;
    if (!read_segment(fd.get(), header, i, segment)) return unreadable;
    if (segment.p_type != PT_LOAD || !segment.p_memsz) continue;
    segments.push_back(segment);
    if (header.e_phoff >= segment.p_offset && header.e_phoff < segment.p_offset + segment.p_filesz)
      headers = segment.p_vaddr + header.e_phoff - segment.p_offset;
  }
  if (segments.empty()) return unreadable;
  const u64 moved = TRY(take_addresses(segments, header.e_type == ET_DYN));
  for (const auto& segment : segments) TRY(map_segment(fd.get(), segment, moved));
  return Image{header.e_entry + moved, headers ? headers + moved : 0, header.e_phnum, moved,
               std::any_of(segments.begin(), segments.end(),
                           [&](const auto& segment) { return mentions_device(segment, moved); })};
}

}  // namespace anykvm::resident
