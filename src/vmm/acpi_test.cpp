#include "vmm/acpi.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <string>

#include "vmm/layout.h"

namespace anykvm::vmm {
namespace {

class AcpiTest : public testing::Test {
 protected:
  template <class T>
  T read(u64 address) const {
    T value;
    std::memcpy(&value, &m_block.at(address - kAcpiAddress.value), sizeof value);
    return value;
  }
  std::string signature(u64 table) const {
    return {reinterpret_cast<const char*>(&m_block.at(table - kAcpiAddress.value)), 4};
  }
  u8 sum(u64 start, u64 size) const {
    auto first = m_block.begin() + static_cast<ptrdiff_t>(start - kAcpiAddress.value);
    return std::accumulate(first, first + static_cast<ptrdiff_t>(size), u8{0});
  }
  u8 table_sum(u64 table) const { return sum(table, read<u32>(table + 4)); }

  std::vector<u8> m_block = build_acpi_tables(kAcpiAddress, {0, 1, 2});
  u64 m_rsdp = kAcpiAddress.value;
  u64 m_xsdt = read<u64>(m_rsdp + 24);
  u64 m_fadt = read<u64>(m_xsdt + 36);
  u64 m_madt = read<u64>(m_xsdt + 44);
};

TEST_F(AcpiTest, rsdp_has_both_checksums) {
  EXPECT_EQ(std::memcmp(m_block.data(), "RSD PTR ", 8), 0);
  EXPECT_EQ(sum(m_rsdp, 20), 0);
  EXPECT_EQ(sum(m_rsdp, 36), 0);
}

TEST_F(AcpiTest, xsdt_lists_fadt_and_madt) {
  EXPECT_EQ(signature(m_xsdt), "XSDT");
  EXPECT_EQ(table_sum(m_xsdt), 0);
  EXPECT_EQ(read<u32>(m_xsdt + 4), 36u + 2 * 8);
  EXPECT_EQ(signature(m_fadt), "FACP");
  EXPECT_EQ(signature(m_madt), "APIC");
}

TEST_F(AcpiTest, fadt_is_as_long_as_its_revision_says) {
  EXPECT_EQ(read<u32>(m_fadt + 4), 276u);
  EXPECT_EQ(read<u8>(m_fadt + 8), 6);
  EXPECT_EQ(table_sum(m_fadt), 0);
}

TEST_F(AcpiTest, fadt_gives_pm1a_control_and_reset_register) {
  EXPECT_EQ(read<u32>(m_fadt + 64), kAcpiPmPort + 4u);
  EXPECT_EQ(read<u64>(m_fadt + 172 + 4), kAcpiPmPort + 4u);
  EXPECT_EQ(read<u64>(m_fadt + 116 + 4), u64{kResetPort});
  EXPECT_EQ(read<u8>(m_fadt + 128), 6);
  EXPECT_EQ(read<u32>(m_fadt + 112) >> 10 & 1, 1u);
}

TEST_F(AcpiTest, fadt_points_to_aligned_facs_and_to_dsdt) {
  u64 facs = read<u64>(m_fadt + 132), dsdt = read<u64>(m_fadt + 140);
  EXPECT_EQ(signature(facs), "FACS");
  EXPECT_EQ(facs % 64, 0u);
  EXPECT_EQ(signature(dsdt), "DSDT");
  EXPECT_EQ(table_sum(dsdt), 0);
  EXPECT_EQ(read<u32>(m_fadt + 40), dsdt);
}

TEST_F(AcpiTest, dsdt_says_soft_off_is_sleep_type_5) {
  u64 dsdt = read<u64>(m_fadt + 140);
  const u8 aml[] = {0x08, '_', 'S', '5', '_', 0x12, 0x08, 0x04, 0x0a, 5, 0x0a, 5, 0, 0};
  ASSERT_EQ(read<u32>(dsdt + 4), 36 + sizeof aml);
  EXPECT_EQ(std::memcmp(&m_block.at(dsdt + 36 - kAcpiAddress.value), aml, sizeof aml), 0);
}

TEST_F(AcpiTest, madt_lists_each_cpu_then_ioapic_and_overrides) {
  EXPECT_EQ(table_sum(m_madt), 0);
  EXPECT_EQ(read<u32>(m_madt + 36), kLapicAddress);
  u64 third_cpu = m_madt + 44 + 2 * 8;
  EXPECT_EQ(read<u8>(third_cpu), 0);
  EXPECT_EQ(read<u8>(third_cpu + 3), 2);
  EXPECT_EQ(read<u32>(third_cpu + 4), 1u);
  u64 ioapic = third_cpu + 8;
  EXPECT_EQ(read<u8>(ioapic), 1);
  EXPECT_EQ(read<u32>(ioapic + 4), kIoapicAddress);
  u64 timer = ioapic + 12;
  EXPECT_EQ(read<u8>(timer), 2);
  EXPECT_EQ(read<u8>(timer + 3), 0);
  EXPECT_EQ(read<u32>(timer + 4), 2u);
}

TEST(Acpi, apic_id_above_254_needs_an_x2apic_entry) {
  std::vector<u8> block = build_acpi_tables(kAcpiAddress, {300});
  auto found = std::search(block.begin(), block.end(), std::begin("APIC"), std::end("APIC") - 1);
  ASSERT_LT(found - block.begin() + 60, static_cast<ptrdiff_t>(block.size()));
  EXPECT_EQ(found[44], 9);
  EXPECT_EQ(found[45], 16);
  EXPECT_EQ(found[48] | found[49] << 8, 300);
}

TEST(Acpi, tables_for_the_most_cpus_fit_their_place) {
  std::vector<u32> ids(4096);
  std::iota(ids.begin(), ids.end(), 0u);
  EXPECT_LE(build_acpi_tables(kAcpiAddress, ids).size(), kAcpiSize);
}

}  // namespace
}  // namespace anykvm::vmm
