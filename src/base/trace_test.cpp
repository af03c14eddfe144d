#include "base/trace.h"

#include <gtest/gtest.h>

namespace anykvm::trace {
namespace {

constexpr u32 bit_of(Category category) { return u32{1} << static_cast<unsigned>(category); }

TEST(Trace, list_names_categories) {
  EXPECT_EQ(parse_categories("ioctl,irq"), bit_of(Category::ioctl) | bit_of(Category::irq));
}
TEST(Trace, unknown_names_and_empty_items_are_ignored) {
  EXPECT_EQ(parse_categories("nonsense,,exit"), bit_of(Category::exit));
  EXPECT_EQ(parse_categories(""), 0u);
}
TEST(Trace, all_enables_every_category) { EXPECT_EQ(parse_categories("all"), ~u32{0}); }

}  // namespace
}  // namespace anykvm::trace
