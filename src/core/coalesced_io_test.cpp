#include "core/coalesced_io.h"

#include <errno.h>
#include <gtest/gtest.h>

namespace anykvm::core {
namespace {

class CoalescedIoTest : public testing::Test {
 protected:
  void SetUp() override { m_io.set_ring(ring()); }
  kvm_coalesced_mmio_ring* ring() { return reinterpret_cast<kvm_coalesced_mmio_ring*>(m_page); }
  bool write(IoBus bus, u64 address, u32 value, unsigned size = 4) {
    return m_io.write(bus, address, &value, size);
  }
  static kvm_coalesced_mmio_zone zone(u64 address, u32 size, u32 pio = 0) {
    kvm_coalesced_mmio_zone zone{};
    zone.addr = address;
    zone.size = size;
    zone.pio = pio;
    return zone;
  }

  alignas(kPageSize) u8 m_page[kPageSize]{};
  CoalescedIo m_io;
};

TEST_F(CoalescedIoTest, write_in_a_zone_goes_to_the_ring) {
  ASSERT_TRUE(m_io.add(zone(0xa0000, 0x1000)).ok());
  ASSERT_TRUE(write(IoBus::kMmio, 0xa0ffc, 0x12345678));
  EXPECT_EQ(ring()->last, 1u);
  EXPECT_EQ(ring()->coalesced_mmio[0].phys_addr, 0xa0ffcu);
  EXPECT_EQ(ring()->coalesced_mmio[0].len, 4u);
  EXPECT_EQ(ring()->coalesced_mmio[0].data[0], 0x78);
}

TEST_F(CoalescedIoTest, write_outside_or_across_the_end_is_not_taken) {
  ASSERT_TRUE(m_io.add(zone(0xa0000, 0x1000)).ok());
  EXPECT_FALSE(write(IoBus::kMmio, 0xa1000, 1));
  EXPECT_FALSE(write(IoBus::kMmio, 0xa0ffe, 1));
  EXPECT_FALSE(write(IoBus::kPio, 0xa0000, 1));
}

TEST_F(CoalescedIoTest, full_ring_leaves_the_write_to_the_client) {
  ASSERT_TRUE(m_io.add(zone(0x70, 2, 1)).ok());
  constexpr u32 kRoom = (kPageSize - sizeof(kvm_coalesced_mmio_ring)) / sizeof(kvm_coalesced_mmio);
  ring()->first = 1;
  ring()->last = kRoom - 1;
  EXPECT_TRUE(write(IoBus::kPio, 0x70, 1, 1));
  EXPECT_EQ(ring()->last, 0u);
  EXPECT_FALSE(write(IoBus::kPio, 0x70, 1, 1));
}

TEST_F(CoalescedIoTest, nonsense_in_the_ring_is_survived) {
  ASSERT_TRUE(m_io.add(zone(0x70, 2, 1)).ok());
  ring()->last = 0xffffffff;
  EXPECT_FALSE(write(IoBus::kPio, 0x70, 1, 1));
}

TEST_F(CoalescedIoTest, removed_zone_takes_no_writes) {
  ASSERT_TRUE(m_io.add(zone(0xa0000, 0x1000)).ok());
  ASSERT_TRUE(m_io.remove(zone(0xa0000, 0x1000)).ok());
  EXPECT_FALSE(write(IoBus::kMmio, 0xa0000, 1));
}

TEST_F(CoalescedIoTest, pio_flag_other_than_0_and_1_is_einval) {
  EXPECT_EQ(m_io.add(zone(0, 1, 2)).error().code, EINVAL);
}

}  // namespace
}  // namespace anykvm::core
