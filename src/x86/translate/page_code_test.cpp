#include "x86/translate/page_code.h"

#include <gtest/gtest.h>

namespace anykvm::x86 {
namespace {

struct PageCodeTest : testing::Test {
  PageBytes page;
  PageCode code;

  PageCodeTest() {
    for (unsigned i = 0; i < kPageSize; ++i) page[i] = static_cast<u8>(i * 7 + i / 256);
  }
  bool same_after_change_at(unsigned offset) {
    PageBytes changed = page;
    changed[offset] ^= 1;
    return code.same_as(changed.data());
  }
};

TEST_F(PageCodeTest, sees_changes_of_translated_pieces_in_any_order_of_translation) {
  code.add(8, 3000, 10, page);
  code.add(16, 100, 200, page);
  code.add(24, 4090, 6, page);
  EXPECT_TRUE(code.same_as(page.data()));
  for (unsigned offset : {64u, 319u, 2944u, 3071u, 4032u, 4095u}) EXPECT_FALSE(same_after_change_at(offset));
  for (unsigned offset : {0u, 63u, 320u, 2943u, 3072u, 4031u}) EXPECT_TRUE(same_after_change_at(offset));
}

TEST_F(PageCodeTest, a_piece_is_kept_once) {
  code.add(8, 64, 10, page);
  code.add(16, 70, 200, page);
  code.add(24, 0, 4096, page);
  EXPECT_TRUE(code.same_as(page.data()));
  EXPECT_FALSE(same_after_change_at(70));
  EXPECT_EQ(code.blocks(), (std::vector<RecordRef>{8, 16, 24}));
}

TEST_F(PageCodeTest, touches_translated_pieces_only) {
  code.add(8, 128, 1, page);
  EXPECT_TRUE(code.touches(191, 1));
  EXPECT_TRUE(code.touches(120, 9));
  EXPECT_FALSE(code.touches(127, 1));
  EXPECT_FALSE(code.touches(192, 64));
}

}  // namespace
}  // namespace anykvm::x86
