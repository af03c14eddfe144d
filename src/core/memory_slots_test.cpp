#include "core/memory_slots.h"

#include <errno.h>
#include <gtest/gtest.h>

namespace anykvm::core {
namespace {

using Change = MemorySlots::Change;

constexpr u64 kHost = 0x10000000;
constexpr u64 kMiB = 1 << 20;

kvm_userspace_memory_region region(u32 slot, u64 gpa, u64 size, u64 host = kHost, u32 flags = 0) {
  return {slot, flags, gpa, size, host};
}

TEST(MemorySlots, seed_G5_new_slot_appears_in_the_layout) {
  MemorySlots slots;
  ASSERT_EQ(slots.set_region(region(3, kMiB, kMiB)).value(), Change::kCreated);
  ASSERT_EQ(slots.layout().size(), 1u);
  EXPECT_EQ(slots.layout()[0].base, Gpa(kMiB));
  EXPECT_EQ(slots.layout()[0].pages->size(), 256u);
}

TEST(MemorySlots, seed_G5_overlap_is_eexist_and_changes_nothing) {
  MemorySlots slots;
  ASSERT_TRUE(slots.set_region(region(0, 0, kMiB)).ok());
  EXPECT_EQ(slots.set_region(region(1, kMiB - kPageSize, kMiB)).error().code, EEXIST);
  EXPECT_EQ(slots.layout().size(), 1u);
}

TEST(MemorySlots, unaligned_addresses_and_sizes_are_einval) {
  MemorySlots slots;
  EXPECT_EQ(slots.set_region(region(0, 1, kMiB)).error().code, EINVAL);
  EXPECT_EQ(slots.set_region(region(0, 0, kMiB + 1)).error().code, EINVAL);
  EXPECT_EQ(slots.set_region(region(0, 0, kMiB, kHost + 1)).error().code, EINVAL);
}

TEST(MemorySlots, unknown_flags_and_slot_numbers_are_einval) {
  MemorySlots slots;
  EXPECT_EQ(slots.set_region(region(0, 0, kMiB, kHost, 4)).error().code, EINVAL);
  EXPECT_EQ(slots.set_region(region(kMaxMemorySlots, 0, kMiB)).error().code, EINVAL);
  EXPECT_EQ(slots.set_region(region(kAddressSpaces << 16, 0, kMiB)).error().code, EINVAL);
}

TEST(MemorySlots, address_spaces_do_not_overlap) {
  MemorySlots slots;
  EXPECT_EQ(slots.set_region(region(0, 0, kMiB)).value(), Change::kCreated);
  EXPECT_EQ(slots.set_region(region(1 << 16, 0, kMiB)).value(), Change::kCreated);
  EXPECT_EQ(slots.set_region(region(1 << 16 | 1, 0, kMiB)).error().code, EEXIST);
}

TEST(MemorySlots, ranges_that_wrap_or_leave_the_address_space_are_einval) {
  MemorySlots slots;
  EXPECT_EQ(slots.set_region(region(0, ~u64{0} << 12, kMiB)).error().code, EINVAL);
  EXPECT_EQ(slots.set_region(region(0, kGuestPhysicalEnd, kMiB)).error().code, EINVAL);
  EXPECT_EQ(slots.set_region(region(0, 0, kMiB, u64{1} << 63)).error().code, EINVAL);
}

TEST(MemorySlots, seed_G5_deleting_frees_the_range) {
  MemorySlots slots;
  ASSERT_TRUE(slots.set_region(region(0, 0, kMiB)).ok());
  EXPECT_EQ(slots.set_region(region(0, 0, 0)).value(), Change::kDeleted);
  EXPECT_EQ(slots.set_region(region(1, 0, kMiB)).value(), Change::kCreated);
}

TEST(MemorySlots, deleting_a_slot_that_is_not_there_is_einval) {
  MemorySlots slots;
  EXPECT_EQ(slots.set_region(region(0, 0, 0)).error().code, EINVAL);
}

TEST(MemorySlots, seed_G5_moved_slot_keeps_its_page_meta_and_log) {
  MemorySlots slots;
  ASSERT_TRUE(slots.set_region(region(0, 0, kMiB, kHost, KVM_MEM_LOG_DIRTY_PAGES)).ok());
  x86::MemorySlot before = slots.layout()[0];
  ASSERT_EQ(slots.set_region(region(0, 4 * kMiB, kMiB, kHost, KVM_MEM_LOG_DIRTY_PAGES)).value(),
            Change::kMoved);
  x86::MemorySlot after = slots.layout()[0];
  EXPECT_EQ(after.base, Gpa(4 * kMiB));
  EXPECT_EQ(after.pages, before.pages);
  EXPECT_EQ(after.dirty_bitmap, before.dirty_bitmap);
}

TEST(MemorySlots, slot_moved_onto_part_of_itself_is_no_overlap) {
  MemorySlots slots;
  ASSERT_TRUE(slots.set_region(region(0, 0, kMiB)).ok());
  EXPECT_EQ(slots.set_region(region(0, kPageSize, kMiB)).value(), Change::kMoved);
}

TEST(MemorySlots, size_host_and_read_only_cannot_change) {
  MemorySlots slots;
  ASSERT_TRUE(slots.set_region(region(0, 0, kMiB)).ok());
  EXPECT_EQ(slots.set_region(region(0, 0, 2 * kMiB)).error().code, EINVAL);
  EXPECT_EQ(slots.set_region(region(0, 0, kMiB, kHost + kPageSize)).error().code, EINVAL);
  EXPECT_EQ(slots.set_region(region(0, 0, kMiB, kHost, KVM_MEM_READONLY)).error().code, EINVAL);
}

TEST(MemorySlots, slots_between_addresses_are_those_that_reach_in) {
  MemorySlots slots;
  ASSERT_TRUE(slots.set_region(region(4, 0, kMiB)).ok());
  ASSERT_TRUE(slots.set_region(region(2, kMiB, kMiB)).ok());
  ASSERT_TRUE(slots.set_region(region(7, 4 * kMiB, kMiB)).ok());
  EXPECT_EQ(slots.between(kMiB / 2, kMiB), (std::vector<u32>{4}));
  EXPECT_EQ(slots.between(kMiB / 2, kMiB + 1), (std::vector<u32>{4, 2}));
  EXPECT_EQ(slots.between(2 * kMiB, 4 * kMiB), std::vector<u32>());
  EXPECT_EQ(slots.between(0, 8 * kMiB), (std::vector<u32>{4, 2, 7}));
}

TEST(MemorySlots, place_of_a_moved_slot_is_free) {
  MemorySlots slots;
  ASSERT_TRUE(slots.set_region(region(0, 0, kMiB)).ok());
  ASSERT_TRUE(slots.set_region(region(0, 4 * kMiB, kMiB)).ok());
  EXPECT_EQ(slots.set_region(region(1, 0, kMiB)).value(), Change::kCreated);
  EXPECT_EQ(slots.set_region(region(2, 4 * kMiB, kMiB)).error().code, EEXIST);
}

TEST(MemorySlots, same_region_again_is_no_change) {
  MemorySlots slots;
  ASSERT_TRUE(slots.set_region(region(0, 0, kMiB)).ok());
  EXPECT_EQ(slots.set_region(region(0, 0, kMiB)).value(), Change::kNothing);
}

TEST(MemorySlots, logging_switches_on_and_off) {
  MemorySlots slots;
  ASSERT_TRUE(slots.set_region(region(0, 0, 65 * kPageSize)).ok());
  EXPECT_EQ(slots.set_region(region(0, 0, 65 * kPageSize, kHost, KVM_MEM_LOG_DIRTY_PAGES)).value(),
            Change::kFlags);
  EXPECT_EQ(slots.find(0)->dirty_bitmap->size(), 2u);
  EXPECT_EQ(slots.set_region(region(0, 0, 65 * kPageSize)).value(), Change::kFlags);
  EXPECT_EQ(slots.find(0)->dirty_bitmap, nullptr);
}

}  // namespace
}  // namespace anykvm::core
