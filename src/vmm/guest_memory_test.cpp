#include "vmm/guest_memory.h"

#include <gtest/gtest.h>

namespace anykvm::vmm {
namespace {

TEST(GuestMemory, small_memory_is_one_range) {
  auto memory = GuestMemory::create(16 * kMiB);
  ASSERT_TRUE(memory.ok());
  ASSERT_EQ(memory.value().ranges().size(), 1u);
  EXPECT_EQ(memory.value().low_end(), 16 * kMiB);
}

TEST(GuestMemory, more_than_3_gib_continues_above_the_hole) {
  auto memory = GuestMemory::create(4 * kGiB);
  ASSERT_TRUE(memory.ok());
  const auto& ranges = memory.value().ranges();
  ASSERT_EQ(ranges.size(), 2u);
  EXPECT_EQ(ranges[0].size, 3 * kGiB);
  EXPECT_EQ(ranges[1].start, Gpa(4 * kGiB));
  EXPECT_EQ(ranges[1].size, kGiB);
  EXPECT_EQ(ranges[1].host, ranges[0].host + 3 * kGiB);
}

TEST(GuestMemory, access_is_checked_at_both_ends) {
  auto memory = GuestMemory::create(16 * kMiB);
  ASSERT_TRUE(memory.ok());
  EXPECT_NE(memory.value().at(Gpa(16 * kMiB - 8), 8), nullptr);
  EXPECT_EQ(memory.value().at(Gpa(16 * kMiB - 8), 9), nullptr);
  EXPECT_EQ(memory.value().at(Gpa(~u64{0}), 1), nullptr);
  EXPECT_EQ(memory.value().at(Gpa(0), ~u64{0}), nullptr);
}

TEST(GuestMemory, size_that_no_host_has_is_a_failure) {
  auto memory = GuestMemory::create(u64{1} << 46);
  ASSERT_FALSE(memory.ok());
  EXPECT_EQ(memory.error().text.substr(0, 29), "cannot get 67108864 MiB of me");
}

}  // namespace
}  // namespace anykvm::vmm
