#include "x86/mmu/access_slots.h"

#include <gtest/gtest.h>

#include <memory>

namespace anykvm::x86 {
namespace {

class AccessSlotsTest : public testing::Test {
 protected:
  bool holds(u32 slot, u64 page) const { return m_slots->slots[slot].tag == page; }
  bool empty(u32 slot) const { return holds(slot, AccessSlots::kNever); }

  std::unique_ptr<AccessSlots> m_slots = std::make_unique<AccessSlots>();
  u8 m_page[2] = {};
};

TEST_F(AccessSlotsTest, numbers_of_reads_and_writes_never_meet) {
  SlotNumbers numbers;
  u32 last_read = 0;
  for (unsigned i = 0; i < 2 * kSlotsOfKind; ++i) last_read = numbers.next(false);
  EXPECT_LT(last_read, kSlotsOfKind);
  EXPECT_EQ(numbers.next(true), kSlotsOfKind);
}

TEST_F(AccessSlotsTest, flush_empties_every_filled_slot) {
  m_slots->fill(1, 0x1000, m_page);
  m_slots->fill(kSlotCount - 1, 0x2000, m_page);
  m_slots->flush();
  EXPECT_TRUE(empty(1));
  EXPECT_TRUE(empty(kSlotCount - 1));
}

TEST_F(AccessSlotsTest, flush_page_takes_that_page_only_and_the_slot_can_be_filled_again) {
  m_slots->fill(1, 0x1000, m_page);
  m_slots->fill(2, 0x2000, m_page);
  m_slots->flush_page(Gva(0x1234));
  EXPECT_TRUE(empty(1));
  EXPECT_TRUE(holds(2, 0x2000));
  m_slots->fill(1, 0x1000, m_page);
  EXPECT_EQ(m_slots->journal_size, 2u);
  m_slots->flush();
  EXPECT_TRUE(empty(1));
  EXPECT_TRUE(empty(2));
}

TEST_F(AccessSlotsTest, forbid_writes_goes_by_the_host_page) {
  m_slots->fill(1, 0x1000, m_page);
  m_slots->fill(2, 0x2000, m_page + 1);
  m_slots->forbid_writes(m_page);
  EXPECT_TRUE(empty(1));
  EXPECT_TRUE(holds(2, 0x2000));
}

TEST_F(AccessSlotsTest, refilling_one_slot_forever_does_not_fill_the_journal) {
  for (u64 i = 0; i < 3 * kSlotCount; ++i) m_slots->fill(7, i << 12, m_page);
  EXPECT_EQ(m_slots->journal_size, 1u);
}

TEST_F(AccessSlotsTest, thrashing_is_a_matter_of_time) {
  m_slots->misses[3] = 0;
  EXPECT_FALSE(m_slots->thrashes(3, 1'000'000'000));
  EXPECT_FALSE(m_slots->thrashes(3, 2'000'000'000));
  m_slots->misses[3] = 1;
  EXPECT_FALSE(m_slots->thrashes(3, 2'000'000'100));
  m_slots->misses[3] = 0;
  EXPECT_TRUE(m_slots->thrashes(3, 2'000'010'000));
}

}  // namespace
}  // namespace anykvm::x86
