#include "vmm/kernel_image.h"

#include <elf.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

namespace anykvm::vmm {
namespace {

// A bzImage with one setup sector and 64 KiB of code.
std::vector<u8> bzimage() {
  std::vector<u8> file(1024 + 0x10000);
  setup_header header{};
  header.setup_sects = 1;
  header.syssize = 0x1000;
  header.boot_flag = 0xaa55;
  header.header = 0x53726448;
  header.version = 0x020f;
  header.loadflags = LOADED_HIGH;
  header.xloadflags = XLF_KERNEL_64;
  header.pref_address = 0x1000000;
  header.init_size = 0x200000;
  header.initrd_addr_max = 0x7fffffff;
  header.cmdline_size = 2047;
  std::memcpy(&file[0x1f1], &header, sizeof header);
  file[1024] = 0xeb;
  return file;
}

setup_header& header_of(std::vector<u8>& file) { return *reinterpret_cast<setup_header*>(&file[0x1f1]); }

// A vmlinux of one segment, 16 bytes in the file and 4 KiB in memory.
std::vector<u8> elf() {
  std::vector<u8> file(0x1010);
  Elf64_Ehdr elf{};
  std::memcpy(elf.e_ident, ELFMAG, SELFMAG);
  elf.e_ident[EI_CLASS] = ELFCLASS64;
  elf.e_ident[EI_DATA] = ELFDATA2LSB;
  elf.e_type = ET_EXEC;
  elf.e_machine = EM_X86_64;
  elf.e_entry = 0x1000000;
  elf.e_phoff = sizeof elf;
  elf.e_phentsize = sizeof(Elf64_Phdr);
  elf.e_phnum = 1;
  Elf64_Phdr segment{};
  segment.p_type = PT_LOAD;
  segment.p_offset = 0x1000;
  segment.p_vaddr = 0xffffffff81000000;
  segment.p_paddr = 0x1000000;
  segment.p_filesz = 0x10;
  segment.p_memsz = 0x1000;
  std::memcpy(file.data(), &elf, sizeof elf);
  std::memcpy(file.data() + sizeof elf, &segment, sizeof segment);
  return file;
}

// `content` as one LZ4 block of literals, with magic, block size and unpacked size around it.
std::vector<u8> lz4_of(const std::vector<u8>& content) {
  size_t rest = content.size() - 15, block = 1 + rest / 255 + 1 + content.size();
  std::vector<u8> packed;
  auto put = [&](u32 value) {
    for (unsigned shift = 0; shift < 32; shift += 8) packed.push_back(static_cast<u8>(value >> shift));
  };
  put(0x184c2102);
  put(static_cast<u32>(block));
  packed.push_back(0xf0);
  packed.insert(packed.end(), rest / 255, 255);
  packed.push_back(static_cast<u8>(rest % 255));
  packed.insert(packed.end(), content.begin(), content.end());
  put(static_cast<u32>(content.size()));
  return packed;
}

// A bzImage whose compressed part is `packed`.
std::vector<u8> bzimage_with(const std::vector<u8>& packed) {
  auto file = bzimage();
  header_of(file).payload_offset = 0x400;
  header_of(file).payload_length = static_cast<u32>(packed.size());
  header_of(file).kernel_alignment = 0x200000;
  header_of(file).relocatable_kernel = 1;
  std::copy(packed.begin(), packed.end(), file.begin() + 1024 + 0x400);
  return file;
}

std::string error_of(const std::vector<u8>& file) {
  auto image = parse_kernel(file);
  return image ? "no error" : image.error().text;
}

TEST(KernelImage, bzimage_goes_to_its_preferred_address) {
  auto file = bzimage();
  auto image = parse_kernel(file);
  ASSERT_TRUE(image.ok());
  ASSERT_EQ(image.value().segments.size(), 1u);
  EXPECT_EQ(image.value().segments[0].target, Gpa(0x1000000));
  EXPECT_EQ(image.value().segments[0].bytes.size(), 0x10000u);
  EXPECT_EQ(image.value().segments[0].bytes[0], 0xeb);
  EXPECT_EQ(image.value().entry, Gpa(0x1000200));
  EXPECT_EQ(image.value().end, Gpa(0x1200000));
}

TEST(KernelImage, zero_setup_sectors_mean_four) {
  auto file = bzimage();
  header_of(file).setup_sects = 0;
  EXPECT_EQ(error_of(file), "the kernel file is truncated: 66560 bytes of 68096");
}

TEST(KernelImage, truncated_bzimage_is_refused) {
  auto file = bzimage();
  file.resize(file.size() - 1);
  EXPECT_EQ(error_of(file), "the kernel file is truncated: 66559 bytes of 66560");
}

TEST(KernelImage, kernel_without_64_bit_entry_is_refused) {
  auto file = bzimage();
  header_of(file).xloadflags = 0;
  EXPECT_EQ(error_of(file), "the kernel has no 64-bit entry (boot protocol 2.15)");
}

TEST(KernelImage, zimage_is_refused) {
  auto file = bzimage();
  header_of(file).loadflags = 0;
  EXPECT_EQ(error_of(file), "the kernel is a zImage; only bzImage can be loaded");
}

TEST(KernelImage, empty_and_foreign_files_are_refused) {
  EXPECT_EQ(error_of({}), "the kernel file is empty");
  EXPECT_EQ(error_of({'#', '!', '/', 'b'}), "the kernel is neither a bzImage nor an ELF vmlinux");
}

TEST(KernelImage, elf_segment_goes_to_its_physical_address) {
  auto file = elf();
  auto image = parse_kernel(file);
  ASSERT_TRUE(image.ok());
  EXPECT_EQ(image.value().segments.at(0).target, Gpa(0x1000000));
  EXPECT_EQ(image.value().segments.at(0).memory_size, 0x1000u);
  EXPECT_EQ(image.value().entry, Gpa(0x1000000));
  EXPECT_EQ(image.value().end, Gpa(0x1001000));
}

TEST(KernelImage, elf_with_virtual_entry_is_entered_at_its_physical_place) {
  auto file = elf();
  reinterpret_cast<Elf64_Ehdr*>(file.data())->e_entry = 0xffffffff81000040;
  EXPECT_EQ(parse_kernel(file).value().entry, Gpa(0x1000040));
}

TEST(KernelImage, truncated_elf_is_refused) {
  auto file = elf();
  file.resize(0x100f);
  EXPECT_EQ(error_of(file), "the kernel file is truncated: a segment ends at 4112");
  file.resize(70);
  EXPECT_EQ(error_of(file), "the kernel file is truncated: its program headers are missing");
  file.resize(10);
  EXPECT_EQ(error_of(file), "the kernel file is truncated: 10 bytes");
}

TEST(KernelImage, elf_of_another_machine_is_refused) {
  auto file = elf();
  reinterpret_cast<Elf64_Ehdr*>(file.data())->e_machine = EM_AARCH64;
  EXPECT_EQ(error_of(file), "the kernel is an ELF file, but not a 64-bit x86 one");
}

TEST(KernelImage, elf_segment_that_wraps_around_is_refused) {
  auto file = elf();
  reinterpret_cast<Elf64_Phdr*>(file.data() + sizeof(Elf64_Ehdr))->p_paddr = ~u64{0};
  EXPECT_EQ(error_of(file), "the kernel's ELF program headers make no sense");
}

TEST(KernelImage, kernel_inside_a_bzimage_moves_down_to_two_mib) {
  auto file = bzimage_with(lz4_of(elf()));
  auto image = parse_kernel_inside(file);
  ASSERT_TRUE(image.ok()) << image.error().text;
  EXPECT_EQ(image.value().segments.at(0).target, Gpa(0x200000));
  EXPECT_EQ(image.value().entry, Gpa(0x200000));
  EXPECT_EQ(image.value().end, Gpa(0x201000));
  EXPECT_EQ(image.value().header.version, 0x020f);
}

TEST(KernelImage, kernel_inside_stays_if_it_is_not_relocatable) {
  auto file = bzimage_with(lz4_of(elf()));
  header_of(file).relocatable_kernel = 0;
  EXPECT_EQ(parse_kernel_inside(file).value().entry, Gpa(0x1000000));
}

TEST(KernelImage, bzimage_with_wrong_payload_size_has_no_kernel_inside) {
  auto file = bzimage_with(lz4_of(elf()));
  header_of(file).payload_length = 0x10000;
  EXPECT_EQ(parse_kernel_inside(file).error().text, "the kernel's header is wrong about its compressed part");
}

}  // namespace
}  // namespace anykvm::vmm
