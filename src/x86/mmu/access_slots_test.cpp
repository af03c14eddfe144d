#include "x86/mmu/access_slots.h"

#include <gtest/gtest.h>

#include <memory>
#include <set>

namespace anykvm::x86 {
namespace {

TEST(SlotNumbers, kinds_never_share_a_slot) {
  SlotNumbers numbers;
  std::set<u32> reads, writes, wide_reads, kernel_reads;
  for (unsigned i = 0; i < 2 * SlotNumbers::kPiece; ++i) {
    reads.insert(numbers.next(kMmuUser, false, 4, true));
    writes.insert(numbers.next(kMmuUser, true, 4, true));
    wide_reads.insert(numbers.next(kMmuUser, false, 8, true));
    kernel_reads.insert(numbers.next(kMmuSupervisor, false, 4, true));
  }
  std::set<u32> all = reads;
  for (const auto& more : {writes, wide_reads, kernel_reads}) all.insert(more.begin(), more.end());
  EXPECT_EQ(all.size(), 8 * SlotNumbers::kPiece);
  EXPECT_LT(*all.rbegin(), kSlotCount);
}

TEST(SlotNumbers, a_kind_shares_its_own_when_all_are_taken) {
  SlotNumbers numbers;
  const u32 first = numbers.next(kMmuUser, false, 8, true);
  for (unsigned i = 1; i < kSlotCount; ++i) numbers.next(kMmuUser, false, 8, true);
  EXPECT_EQ(numbers.next(kMmuUser, false, 8, true), first);
  EXPECT_EQ(numbers.next(kMmuUser, true, 8, true), kNoSlot);
}

TEST(SlotNumbers, who_may_not_share_gets_none_when_all_are_taken) {
  SlotNumbers numbers;
  for (unsigned i = 0; i < kSlotCount; ++i) EXPECT_NE(numbers.next(kMmuUser, false, 8, false), kNoSlot);
  EXPECT_FALSE(numbers.short_of_slots());
  EXPECT_EQ(numbers.next(kMmuUser, false, 8, false), kNoSlot);
  EXPECT_TRUE(numbers.short_of_slots());
  numbers.take_back();
  EXPECT_FALSE(numbers.short_of_slots());
  EXPECT_NE(numbers.next(kMmuUser, false, 8, false), kNoSlot);
}

TEST(SlotNumbers, odd_spans_have_none) {
  SlotNumbers numbers;
  for (unsigned span : {0u, 3u, 10u, 12u, 264u, 512u})
    EXPECT_EQ(numbers.next(kMmuUser, false, span, true), kNoSlot) << span;
  EXPECT_NE(numbers.next(kMmuUser, false, 256, true), kNoSlot);
}

class AccessSlotsTest : public testing::Test {
 protected:
  static constexpr u64 kDelta = 0x7000000;

  bool hits(u32 slot, u64 address) const {
    return address - m_slots->slots[slot].first < m_slots->slots[slot].length;
  }
  bool empty(u32 slot) const { return m_slots->slots[slot].length == 0; }
  void fill(u32 slot, u64 first, u64 pages, unsigned span = 8) {
    m_slots->fill(slot, {first, pages * kPageSize}, span, kDelta);
  }

  std::unique_ptr<AccessSlots> m_slots = std::make_unique<AccessSlots>();
};

TEST_F(AccessSlotsTest, an_empty_slot_is_never_hit) {
  EXPECT_FALSE(hits(5, 0));
  EXPECT_FALSE(hits(5, u64{1} << 63));
}

TEST_F(AccessSlotsTest, hit_up_to_the_last_access_that_fits) {
  fill(1, 0x1000, 2);
  EXPECT_FALSE(hits(1, 0xfff));
  EXPECT_TRUE(hits(1, 0x1000));
  EXPECT_TRUE(hits(1, 0x1ffc));
  EXPECT_TRUE(hits(1, 0x2ff8));
  EXPECT_FALSE(hits(1, 0x2ff9));
}

TEST_F(AccessSlotsTest, the_top_of_the_address_space_does_not_wrap) {
  fill(1, ~u64{0xfff}, 1);
  EXPECT_TRUE(hits(1, ~u64{7}));
  EXPECT_FALSE(hits(1, ~u64{6}));
  EXPECT_FALSE(hits(1, 0));
}

TEST_F(AccessSlotsTest, flush_empties_every_filled_slot) {
  fill(1, 0x1000, 1);
  fill(kSlotCount - 1, 0x2000, 3);
  m_slots->flush();
  EXPECT_TRUE(empty(1));
  EXPECT_TRUE(empty(kSlotCount - 1));
}

TEST_F(AccessSlotsTest, flush_page_takes_extents_with_that_page_and_the_slot_can_be_filled_again) {
  fill(1, 0x10000, 4);
  fill(2, 0x20000, 4);
  fill(3, 0x12000, 1);
  m_slots->flush_page(Gva(0x13234));
  EXPECT_TRUE(empty(1));
  EXPECT_FALSE(empty(2));
  m_slots->flush_page(Gva(0x12000));
  EXPECT_TRUE(empty(3));
  fill(1, 0x10000, 1);
  EXPECT_EQ(m_slots->journal_size, 2u);
  m_slots->flush();
  EXPECT_TRUE(empty(1));
  EXPECT_TRUE(empty(2));
}

TEST_F(AccessSlotsTest, flush_page_finds_the_last_page_whatever_the_span) {
  for (unsigned span : {1u, 8u, kLongestSpan}) {
    fill(1, 0x10000, 4, span);
    m_slots->flush_page(Gva(0x13fff));
    EXPECT_TRUE(empty(1)) << span;
  }
}

TEST_F(AccessSlotsTest, flush_page_keeps_others_as_long_as_they_are_few) {
  for (u32 slot = 0; slot < 50; ++slot) fill(slot, 0x1000 * (slot + 1), 1);
  m_slots->flush_page(Gva(0x1000 * 50));
  EXPECT_TRUE(hits(0, 0x1000));
  for (u32 slot = 50; slot < 1000; ++slot) fill(slot, 0x1000 * (slot + 1), 1);
  m_slots->flush_page(Gva(0x1000 * 900));
  EXPECT_TRUE(empty(899));
  EXPECT_TRUE(empty(0));
  EXPECT_EQ(m_slots->journal_size, 0u);
}

TEST_F(AccessSlotsTest, forbid_writes_goes_by_the_host_page) {
  fill(1, 0x10000, 4);
  fill(2, 0x20000, 4);
  m_slots->forbid_writes(reinterpret_cast<u8*>(kDelta + 0x13000));
  EXPECT_TRUE(empty(1));
  EXPECT_FALSE(empty(2));
  m_slots->forbid_writes(reinterpret_cast<u8*>(kDelta + 0x1f000));
  EXPECT_FALSE(empty(2));
}

TEST_F(AccessSlotsTest, refilling_one_slot_forever_does_not_fill_the_journal) {
  for (u64 i = 0; i < 3 * kSlotCount; ++i) fill(7, i << 12, 1);
  EXPECT_EQ(m_slots->journal_size, 1u);
}

TEST_F(AccessSlotsTest, thrashing_is_a_matter_of_time) {
  m_slots->misses[3] = 0;
  EXPECT_FALSE(m_slots->thrashes(3, false, 1'000'000'000));
  EXPECT_FALSE(m_slots->thrashes(3, false, 2'000'000'000));
  m_slots->misses[3] = 1;
  EXPECT_FALSE(m_slots->thrashes(3, false, 2'000'000'100));
  m_slots->misses[3] = 0;
  EXPECT_TRUE(m_slots->thrashes(3, false, 2'000'010'000));
}

TEST_F(AccessSlotsTest, a_group_may_miss_more_often) {
  EXPECT_FALSE(m_slots->thrashes(3, true, 1'000'000'000));
  EXPECT_FALSE(m_slots->thrashes(3, true, 1'000'030'000));
  EXPECT_TRUE(m_slots->thrashes(3, false, 1'000'060'000));
  EXPECT_TRUE(m_slots->thrashes(3, true, 1'000'070'000));
}

class ExtentTest : public testing::Test {
 protected:
  void fill(u64 page, bool write, u64 delta = 0x7f0000000000) {
    m_tlb->fill(Gva(page), reinterpret_cast<u8*>(page + delta), write, false);
  }
  u64 bytes(u64 page, bool write = false) const { return m_tlb->extent_around(Gva(page), write).bytes; }
  u64 first(u64 page, bool write = false) const { return m_tlb->extent_around(Gva(page), write).first; }

  std::unique_ptr<TlbTable> m_tlb = std::make_unique<TlbTable>();
};

TEST_F(ExtentTest, goes_both_ways_over_neighbours_with_the_same_delta) {
  for (u64 page : {0x10000u, 0x11000u, 0x12000u}) fill(page, false);
  fill(0x13000, false, 0x7f0000100000);
  EXPECT_EQ(first(0x11234), 0x10000u);
  EXPECT_EQ(bytes(0x11234), 3 * kPageSize);
  EXPECT_EQ(bytes(0x13000), kPageSize);
}

TEST_F(ExtentTest, of_writes_ends_at_a_page_that_may_only_be_read) {
  fill(0x10000, true);
  fill(0x11000, true);
  fill(0x12000, false);
  EXPECT_EQ(bytes(0x10000, true), 2 * kPageSize);
  EXPECT_EQ(bytes(0x10000, false), 3 * kPageSize);
  m_tlb->forbid_writes(reinterpret_cast<u8*>(0x7f0000011000));
  EXPECT_EQ(bytes(0x10000, true), kPageSize);
}

TEST_F(ExtentTest, ends_at_4_gib_and_at_both_ends_of_the_address_space) {
  for (u64 page : {u64{0xfffff000}, u64{0x100000000}, u64{0}, ~u64{0xfff}}) fill(page, false);
  EXPECT_EQ(bytes(0xfffff000), kPageSize);
  EXPECT_EQ(bytes(0x100000000), kPageSize);
  EXPECT_EQ(bytes(0), kPageSize);
  EXPECT_EQ(bytes(~u64{0xfff}), kPageSize);
}

TEST_F(ExtentTest, has_an_end_when_the_whole_table_is_one_run) {
  for (u64 i = 0; i < kTlbEntries; ++i) fill(0x40000000 + i * kPageSize, true);
  const u64 at = 0x40000000 + (kTlbEntries - 424) * kPageSize;
  EXPECT_EQ(first(at, true), at - 512 * kPageSize);
  EXPECT_EQ(bytes(at, true), (512 + 424) * kPageSize);
}

}  // namespace
}  // namespace anykvm::x86
