#include "vmm/kernel_image.h"

#include <elf.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>

#include "base/bits.h"
#include "vmm/unpack.h"

namespace anykvm::vmm {
namespace {

constexpr u64 kHeaderOffset = 0x1f1;
constexpr u32 kMagic = 0x53726448;  // "HdrS"
constexpr u16 kBootFlag = 0xaa55;
constexpr u16 kVersionWithXloadflags = 0x020c;
constexpr u64 kEntry64Offset = 0x200;  // of startup_64 in the protected-mode code

template <class T>
std::optional<T> object_at(std::span<const u8> file, u64 offset) {
  if (offset > file.size() || sizeof(T) > file.size() - offset) return std::nullopt;
  T object;
  std::memcpy(&object, file.data() + offset, sizeof object);
  return object;
}

std::optional<std::span<const u8>> bytes_at(std::span<const u8> file, u64 offset, u64 size) {
  if (offset > file.size() || size > file.size() - offset) return std::nullopt;
  return file.subspan(offset, size);
}

bool is_elf(std::span<const u8> file) {
  return file.size() >= SELFMAG && !std::memcmp(file.data(), ELFMAG, SELFMAG);
}

Outcome<> check_header(const setup_header& header) {
  if (header.version < kVersionWithXloadflags || !(header.xloadflags & XLF_KERNEL_64)) {
    return failure("the kernel has no 64-bit entry (boot protocol {}.{:02})", header.version >> 8,
                   header.version & 0xff);
  }
  if (!(header.loadflags & LOADED_HIGH)) return failure("the kernel is a zImage; only bzImage can be loaded");
  return {};
}

Outcome<KernelImage> parse_bzimage(std::span<const u8> file) {
  auto header = object_at<setup_header>(file, kHeaderOffset);
  if (!header || header->boot_flag != kBootFlag || header->header != kMagic) {
    return failure("the kernel is neither a bzImage nor an ELF vmlinux");
  }
  TRY(check_header(*header));
  u64 setup_sectors = header->setup_sects ? header->setup_sects : 4;
  u64 offset = (setup_sectors + 1) * 512, size = u64{header->syssize} * 16;
  auto code = bytes_at(file, offset, size);
  if (!code || size <= kEntry64Offset) {
    return failure("the kernel file is truncated: {} bytes of {}", file.size(), offset + size);
  }
  KernelImage image;
  image.header = *header;
  image.start = Gpa(header->pref_address);
  image.end = image.start + std::max<u64>(header->init_size, size);
  image.entry = image.start + kEntry64Offset;
  image.segments.push_back({image.start, *code, size});
  return image;
}

// A vmlinux has no setup header: what the boot protocol wants the boot loader to say.
setup_header header_for_elf() {
  setup_header header{};
  header.boot_flag = kBootFlag;
  header.header = kMagic;
  header.version = kVersionWithXloadflags;
  header.loadflags = LOADED_HIGH;
  header.xloadflags = XLF_KERNEL_64;
  header.initrd_addr_max = 0x7fffffff;
  header.cmdline_size = 2047;
  header.kernel_alignment = 0x200000;
  return header;
}

Outcome<> check_elf_header(const Elf64_Ehdr& elf) {
  bool known = elf.e_ident[EI_CLASS] == ELFCLASS64 && elf.e_ident[EI_DATA] == ELFDATA2LSB;
  if (!known || elf.e_machine != EM_X86_64 || elf.e_phentsize != sizeof(Elf64_Phdr)) {
    return failure("the kernel is an ELF file, but not a 64-bit x86 one");
  }
  if (elf.e_type != ET_EXEC && elf.e_type != ET_DYN)
    return failure("the kernel is an ELF file without an entry");
  return {};
}

// The entry of vmlinux is physical; a virtual one is moved by its segment's distance.
Gpa physical_entry(const Elf64_Ehdr& elf, const std::vector<Elf64_Phdr>& loads) {
  for (const Elf64_Phdr& p : loads) {
    if (elf.e_entry - p.p_paddr < p.p_memsz) return Gpa(elf.e_entry);
  }
  for (const Elf64_Phdr& p : loads) {
    if (elf.e_entry - p.p_vaddr < p.p_memsz) return Gpa(elf.e_entry - p.p_vaddr + p.p_paddr);
  }
  return Gpa(elf.e_entry);
}

void move_down(KernelImage& image, u64 distance) {
  for (LoadSegment& segment : image.segments) segment.target = segment.target - distance;
  image.entry = image.entry - distance;
  image.start = image.start - distance;
  image.end = image.end - distance;
}

}  // namespace

Outcome<KernelImage> parse_elf(std::span<const u8> file) {
  auto elf = object_at<Elf64_Ehdr>(file, 0);
  if (!elf) return failure("the kernel file is truncated: {} bytes", file.size());
  TRY(check_elf_header(*elf));
  KernelImage image;
  image.header = header_for_elf();
  image.start = Gpa(~u64{0});
  std::vector<Elf64_Phdr> loads;
  for (u64 i = 0; i < elf->e_phnum; ++i) {
    auto p = object_at<Elf64_Phdr>(file, elf->e_phoff + i * sizeof(Elf64_Phdr));
    if (!p) return failure("the kernel file is truncated: its program headers are missing");
    if (p->p_type != PT_LOAD || p->p_memsz == 0) continue;
    auto bytes = bytes_at(file, p->p_offset, p->p_filesz);
    if (!bytes)
      return failure("the kernel file is truncated: a segment ends at {}", p->p_offset + p->p_filesz);
    if (p->p_memsz < p->p_filesz || p->p_paddr + p->p_memsz < p->p_paddr) {
      return failure("the kernel's ELF program headers make no sense");
    }
    loads.push_back(*p);
    image.segments.push_back({Gpa(p->p_paddr), *bytes, p->p_memsz});
    image.start = std::min(image.start, Gpa(p->p_paddr));
    image.end = std::max(image.end, Gpa(p->p_paddr + p->p_memsz));
  }
  if (loads.empty()) return failure("the kernel is an ELF file with nothing to load");
  image.entry = physical_entry(*elf, loads);
  return image;
}

Outcome<KernelImage> parse_kernel(std::span<const u8> file) {
  if (file.empty()) return failure("the kernel file is empty");
  return is_elf(file) ? parse_elf(file) : parse_bzimage(file);
}

Outcome<KernelImage> parse_kernel_inside(std::span<const u8> bzimage) {
  KernelImage outer = TRY(parse_bzimage(bzimage));
  auto packed = bytes_at(outer.segments[0].bytes, outer.header.payload_offset, outer.header.payload_length);
  if (!packed) return failure("the kernel's header is wrong about its compressed part");
  std::vector<u8> unpacked = TRY(unpack_kernel(*packed));
  KernelImage image = TRY(parse_elf(unpacked));
  image.unpacked = std::move(unpacked);  // the segments go on pointing to the same bytes
  image.header = outer.header;
  // Above the first MiB, where firmware tables are, and aligned as before.
  constexpr u64 kLowest = 0x100000;
  u64 alignment = std::max<u64>(outer.header.kernel_alignment, kPageSize);
  u64 target = align_up(kLowest, alignment);
  if (std::has_single_bit(alignment) && outer.header.relocatable_kernel && image.start.value > target) {
    move_down(image, align_down(image.start.value - target, alignment));
  }
  return image;
}

}  // namespace anykvm::vmm
