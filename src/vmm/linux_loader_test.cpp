#include "vmm/linux_loader.h"

#include <asm/bootparam.h>
#include <gtest/gtest.h>

#include <cstring>

#include "vmm/layout.h"

namespace anykvm::vmm {
namespace {

class LinuxLoaderTest : public testing::Test {
 protected:
  LinuxLoaderTest() {
    setup_header header{};
    header.setup_sects = 1;
    header.syssize = 0x100;
    header.boot_flag = 0xaa55;
    header.header = 0x53726448;
    header.version = 0x020f;
    header.loadflags = LOADED_HIGH;
    header.xloadflags = XLF_KERNEL_64;
    header.pref_address = 0x1000000;
    header.init_size = 0x1000000;  // 16 to 32 MiB
    header.initrd_addr_max = 0x7fffffff;
    header.cmdline_size = 255;
    set_header(header);
    m_kernel[1024] = 0xc3;
  }
  void set_header(const setup_header& header) { std::memcpy(&m_kernel[0x1f1], &header, sizeof header); }
  setup_header header() const {
    setup_header header;
    std::memcpy(&header, &m_kernel[0x1f1], sizeof header);
    return header;
  }
  Outcome<Gpa> load(const GuestMemory& memory) {
    return load_linux(memory, {m_kernel, m_initrd, m_command_line});
  }
  boot_params params(const GuestMemory& memory) {
    boot_params params;
    std::memcpy(&params, memory.at(kBootParamsAddress, sizeof params), sizeof params);
    return params;
  }

  std::vector<u8> m_kernel = std::vector<u8>(1024 + 0x1000);
  std::vector<u8> m_initrd;
  std::string m_command_line = "quiet";
};

TEST_F(LinuxLoaderTest, kernel_command_line_and_rsdp_are_in_place) {
  auto memory = GuestMemory::create(64 * kMiB).value();
  auto entry = load(memory);
  ASSERT_TRUE(entry.ok());
  EXPECT_EQ(entry.value(), Gpa(0x1000200));
  EXPECT_EQ(*memory.at(Gpa(0x1000000), 1), 0xc3);
  EXPECT_STREQ(reinterpret_cast<char*>(memory.at(kCommandLineAddress, 6)), "quiet");
  EXPECT_EQ(params(memory).hdr.cmd_line_ptr, kCommandLineAddress.value);
  EXPECT_EQ(params(memory).hdr.type_of_loader, 0xff);
  EXPECT_EQ(params(memory).acpi_rsdp_addr, kAcpiAddress.value);
}

TEST_F(LinuxLoaderTest, initrd_goes_to_the_top_of_low_memory) {
  m_initrd.assign(5000, 7);
  auto memory = GuestMemory::create(64 * kMiB).value();
  ASSERT_TRUE(load(memory).ok());
  EXPECT_EQ(params(memory).hdr.ramdisk_image, 64 * kMiB - 8192);
  EXPECT_EQ(params(memory).hdr.ramdisk_size, 5000u);
  EXPECT_EQ(*memory.at(Gpa(64 * kMiB - 8192 + 4999), 1), 7);
}

TEST_F(LinuxLoaderTest, initrd_stays_below_the_kernels_limit) {
  setup_header limited = header();
  limited.initrd_addr_max = 0x2ffffff;
  set_header(limited);
  m_initrd.assign(4096, 7);
  auto memory = GuestMemory::create(128 * kMiB).value();
  ASSERT_TRUE(load(memory).ok());
  EXPECT_EQ(params(memory).hdr.ramdisk_image, 0x2fff000u);
}

TEST_F(LinuxLoaderTest, initrd_goes_below_the_kernel_if_there_is_no_room_above) {
  m_initrd.assign(4 * kMiB, 7);
  auto memory = GuestMemory::create(34 * kMiB).value();
  ASSERT_TRUE(load(memory).ok());
  EXPECT_EQ(params(memory).hdr.ramdisk_image, 12 * kMiB);
}

TEST_F(LinuxLoaderTest, initrd_that_fits_nowhere_is_refused) {
  m_initrd.assign(16 * kMiB, 7);
  auto memory = GuestMemory::create(34 * kMiB).value();
  auto entry = load(memory);
  ASSERT_FALSE(entry.ok());
  EXPECT_EQ(entry.error().text,
            "the initrd (16 MiB) does not fit beside the kernel in 34 MiB of guest memory");
}

TEST_F(LinuxLoaderTest, kernel_larger_than_memory_is_refused) {
  auto memory = GuestMemory::create(16 * kMiB).value();
  auto entry = load(memory);
  ASSERT_FALSE(entry.ok());
  EXPECT_EQ(entry.error().text, "the kernel needs at least 32 MiB of memory, but the guest has 16 MiB");
}

TEST_F(LinuxLoaderTest, command_line_longer_than_the_kernel_takes_is_refused) {
  m_command_line.assign(256, 'x');
  auto memory = GuestMemory::create(64 * kMiB).value();
  auto entry = load(memory);
  ASSERT_FALSE(entry.ok());
  EXPECT_EQ(entry.error().text, "the kernel command line has 256 characters, the kernel takes 255");
}

TEST_F(LinuxLoaderTest, memory_map_leaves_out_firmware_areas_and_the_hole) {
  auto memory = GuestMemory::create(4 * kGiB).value();
  ASSERT_TRUE(load(memory).ok());
  boot_params p = params(memory);
  ASSERT_EQ(p.e820_entries, 6);
  EXPECT_EQ(p.e820_table[0].size, kLowRamEnd);
  EXPECT_EQ(p.e820_table[2].addr, kAcpiAddress.value);
  EXPECT_EQ(p.e820_table[2].type, 3u);
  EXPECT_EQ(p.e820_table[3].addr + p.e820_table[3].size, 3 * kGiB);
  EXPECT_EQ(p.e820_table[5].addr, 4 * kGiB);
  EXPECT_EQ(p.e820_table[5].size, kGiB);
}

TEST(CommandLine, appended_text_comes_last) {
  EXPECT_EQ(command_line_with_defaults(""), "console=ttyS0 reboot=t panic=-1");
  EXPECT_EQ(command_line_with_defaults("panic=5"), "console=ttyS0 reboot=t panic=-1 panic=5");
}

}  // namespace
}  // namespace anykvm::vmm
