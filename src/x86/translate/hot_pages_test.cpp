#include "x86/translate/hot_pages.h"

#include <gtest/gtest.h>

namespace anykvm::x86 {
namespace {

constexpr Gpa kPage{0x123000};

TEST(HotPages, page_that_is_always_there_is_hot_soon) {
  HotPages pages;
  for (u32 i = 1; i < HotPages::kHot; ++i) EXPECT_FALSE(pages.sample(kPage));
  EXPECT_TRUE(pages.sample(kPage));
}

TEST(HotPages, pages_of_a_large_program_are_not) {
  HotPages pages;
  unsigned hot = 0;
  for (u64 i = 0; i < 20 * HotPages::kWindow; ++i) hot += pages.sample(Gpa(i % 300 << 12));
  EXPECT_EQ(hot, 0u);
}

TEST(HotPages, every_tenth_sample_is_enough) {
  HotPages pages;
  bool hot = false;
  for (u64 i = 0; i < HotPages::kWindow; ++i) {
    if (i % 10 == 0) hot = pages.sample(kPage);
    pages.sample(Gpa((i % 300 + 512) << 12));
  }
  EXPECT_TRUE(hot);
}

TEST(HotPages, page_at_the_place_of_a_busy_one_does_not_replace_it) {
  HotPages pages;
  const Gpa other(kPage.value ^ u64{1025} << 12);  // shares its entry
  for (u32 i = 1; i < HotPages::kHot; ++i) pages.sample(kPage);
  pages.sample(other);
  EXPECT_FALSE(pages.sample(kPage));
  EXPECT_TRUE(pages.sample(kPage));
}

}  // namespace
}  // namespace anykvm::x86
