#include "vmm/boot_cpu.h"

#include <gtest/gtest.h>

#include <cstring>

#include "vmm/layout.h"

namespace anykvm::vmm {
namespace {

class BootCpuTest : public testing::Test {
 protected:
  BootCpuTest() { write_boot_tables(m_memory); }
  u64 word(u64 address) const {
    u64 value;
    std::memcpy(&value, m_memory.at(Gpa(address), 8), sizeof value);
    return value;
  }

  GuestMemory m_memory = GuestMemory::create(16 * kMiB).value();
};

TEST_F(BootCpuTest, descriptors_are_flat_64_bit_code_and_data) {
  EXPECT_EQ(word(kGdtAddress.value + 0x10), 0x00af9b000000ffffu);
  EXPECT_EQ(word(kGdtAddress.value + 0x18), 0x00cf93000000ffffu);
}

TEST_F(BootCpuTest, page_tables_map_four_gib_one_to_one) {
  u64 pml4 = kPageTablesAddress.value;
  u64 pdpt = word(pml4) & ~u64{0xfff};
  EXPECT_EQ(pdpt, pml4 + 0x1000);
  u64 directory = word(pdpt + 3 * 8) & ~u64{0xfff};
  EXPECT_EQ(word(directory + 511 * 8), 0xffe00083u);
  EXPECT_EQ(word(pdpt + 4 * 8), 0u);
}

TEST_F(BootCpuTest, first_cpu_starts_in_long_mode_at_the_entry) {
  kvm_sregs sregs{};
  set_boot_sregs(sregs);
  EXPECT_EQ(sregs.cr3, kPageTablesAddress.value);
  EXPECT_EQ(sregs.efer & 0x500, 0x500u);
  EXPECT_EQ(sregs.cs.l, 1);
  EXPECT_EQ(sregs.cs.db, 0);
  kvm_regs regs = boot_regs(Gpa(0x1000200));
  EXPECT_EQ(regs.rip, 0x1000200u);
  EXPECT_EQ(regs.rsi, kBootParamsAddress.value);
  EXPECT_EQ(regs.rflags, 2u);
}

}  // namespace
}  // namespace anykvm::vmm
