#include "x86/mmu/physical_memory.h"

#include <gtest/gtest.h>

namespace anykvm::x86 {
namespace {

class PhysicalMemoryTest : public testing::Test {
 protected:
  PhysicalMemoryTest() {
    m_memory.set_slots(
        {slot(2, 0x100000, 0x4000), slot(0, 0, 0x2000), slot(1, 0x4000, 0x1000), slot(3, 0x104000, 0x1000)});
  }

  static MemorySlot slot(u32 id, u64 base, u64 size) {
    return {.id = id, .base = Gpa(base), .size = size, .host = s_ram + base % sizeof s_ram};
  }
  // Slot number that holds `address`, or -1.
  int found(u64 address) const {
    const MemorySlot* slot = m_memory.find(Gpa(address));
    return slot ? static_cast<int>(slot->id) : -1;
  }

  static inline u8 s_ram[0x20000];
  PhysicalMemory m_memory;
};

TEST_F(PhysicalMemoryTest, set_slots_unsorted_sorts_by_base) {
  EXPECT_EQ(m_memory.slots().front().id, 0u);
  EXPECT_EQ(m_memory.slots().back().id, 3u);
}

TEST_F(PhysicalMemoryTest, change_slots_leaves_the_others_and_the_order) {
  const Gpa gone[] = {Gpa(0x4000), Gpa(0x100000)};
  m_memory.change_slots(gone, {slot(5, 0x2000, 0x1000), slot(6, 0x200000, 0x1000)});
  EXPECT_EQ(found(0x4000), -1);
  EXPECT_EQ(found(0x100000), -1);
  EXPECT_EQ(found(0x2000), 5);
  EXPECT_EQ(found(0x104000), 3);
  EXPECT_EQ(found(0x1fff), 0);
  EXPECT_EQ(m_memory.slots().back().id, 6u);
}

TEST_F(PhysicalMemoryTest, find_at_edges_finds_the_slot_that_holds_the_byte) {
  EXPECT_EQ(found(0), 0);
  EXPECT_EQ(found(0x1fff), 0);
  EXPECT_EQ(found(0x4000), 1);
  EXPECT_EQ(found(0x4fff), 1);
  EXPECT_EQ(found(0x103fff), 2);
  EXPECT_EQ(found(0x104000), 3);
}

TEST_F(PhysicalMemoryTest, find_in_gap_finds_nothing) {
  EXPECT_EQ(found(0x2000), -1);
  EXPECT_EQ(found(0x5000), -1);
  EXPECT_EQ(found(0x105000), -1);
  EXPECT_EQ(found(~u64{0}), -1);
}

TEST_F(PhysicalMemoryTest, find_after_hit_elsewhere_is_not_misled_by_the_hint) {
  EXPECT_EQ(found(0x104000), 3);
  EXPECT_EQ(found(0), 0);
  EXPECT_EQ(found(0x104800), 3);
  EXPECT_EQ(found(0x3000), -1);
}

TEST_F(PhysicalMemoryTest, find_in_empty_memory_finds_nothing_whatever_the_hint) {
  EXPECT_EQ(found(0x104000), 3);
  EXPECT_EQ(PhysicalMemory().find(Gpa(0)), nullptr);
}

TEST_F(PhysicalMemoryTest, find_in_slot_at_the_top_of_the_address_space_does_not_wrap) {
  m_memory.set_slots({slot(7, 0xfffffffffffff000, 0x1000)});
  EXPECT_EQ(found(~u64{0}), 7);
  EXPECT_EQ(found(0), -1);
}

TEST_F(PhysicalMemoryTest, seed_X9_slot_added_meanwhile_is_seen_by_a_thread_with_an_old_hint) {
  EXPECT_EQ(found(0x104000), 3);
  EXPECT_EQ(found(0x8000), -1);
  m_memory.set_slots({slot(9, 0x8000, 0x1000)});
  EXPECT_EQ(found(0x8000), 9);
  EXPECT_EQ(found(0x104000), -1);
}

TEST_F(PhysicalMemoryTest, host_within_slot_is_base_plus_offset) {
  EXPECT_EQ(m_memory.host(Gpa(0x1ff8), 8), s_ram + 0x1ff8);
}

TEST_F(PhysicalMemoryTest, host_across_the_end_of_a_slot_is_null) {
  EXPECT_EQ(m_memory.host(Gpa(0x1ff9), 8), nullptr);
  EXPECT_EQ(m_memory.host(Gpa(0x103ff9), 8), nullptr);
  EXPECT_EQ(m_memory.host(Gpa(0), ~u64{0}), nullptr);
}

TEST_F(PhysicalMemoryTest, mark_dirty_sets_the_bit_of_the_page) {
  MemorySlot logged = slot(0, 0x10000, 0x100000);
  logged.dirty_bitmap = std::make_shared<std::vector<std::atomic<u64>>>(4);
  logged.mark_dirty(Gpa(0x10000 + 65 * kPageSize + 5));
  EXPECT_EQ((*logged.dirty_bitmap)[0].load(), 0u);
  EXPECT_EQ((*logged.dirty_bitmap)[1].load(), 2u);
}

}  // namespace
}  // namespace anykvm::x86
