#include "core/guest_memory.h"

#include <gmock/gmock.h>

namespace anykvm::core {
namespace {

using Piece = PrivateRanges::Piece;
using testing::ElementsAre;

TEST(PrivateRanges, nothing_is_private_at_first) {
  PrivateRanges ranges;
  EXPECT_FALSE(ranges.contains(0));
  EXPECT_THAT(ranges.cut(0, 10), ElementsAre(Piece{0, 10, false}));
}

TEST(PrivateRanges, ranges_that_touch_become_one) {
  PrivateRanges ranges;
  ranges.set(4, 6, true);
  ranges.set(6, 8, true);
  ranges.set(2, 4, true);
  EXPECT_THAT(ranges.cut(0, 10), ElementsAre(Piece{0, 2, false}, Piece{2, 8, true}, Piece{8, 10, false}));
}

TEST(PrivateRanges, a_hole_splits_a_range) {
  PrivateRanges ranges;
  ranges.set(2, 8, true);
  ranges.set(4, 5, false);
  EXPECT_TRUE(ranges.contains(3));
  EXPECT_FALSE(ranges.contains(4));
  EXPECT_TRUE(ranges.contains(7));
  EXPECT_FALSE(ranges.contains(8));
  EXPECT_THAT(ranges.cut(3, 6), ElementsAre(Piece{3, 4, true}, Piece{4, 5, false}, Piece{5, 6, true}));
}

TEST(PrivateRanges, clearing_everything_leaves_nothing) {
  PrivateRanges ranges;
  ranges.set(2, 8, true);
  ranges.set(10, 12, true);
  ranges.set(0, 20, false);
  EXPECT_TRUE(ranges.empty());
}

}  // namespace
}  // namespace anykvm::core
