#include "x86/translate/block_index.h"

#include <gtest/gtest.h>

namespace anykvm::x86 {
namespace {

struct BlockIndexTest : testing::Test {
  std::unique_ptr<RecordMemory> records = std::move(RecordMemory::create(16 << 20).value());
  BlockIndex index{*records};

  Block* block(u64 gpa, u64 rip, const Mode& mode = {}) {
    Block made;
    made.gpa = Gpa(gpa);
    made.rip = rip;
    made.mode = mode;
    EXPECT_TRUE(records->reserve(sizeof made));
    return records->make(made);
  }
};

TEST_F(BlockIndexTest, finds_by_address_rip_and_mode) {
  Mode user;
  user.cpl = 3;
  Block* kernel_block = block(0x1000, 0x8000);
  Block* user_block = block(0x1000, 0x8000, user);
  index.add(kernel_block);
  index.add(user_block);
  EXPECT_EQ(index.find(Gpa(0x1000), 0x8000, {}), kernel_block);
  EXPECT_EQ(index.find(Gpa(0x1000), 0x8000, user), user_block);
  EXPECT_EQ(index.find(Gpa(0x1001), 0x8000, {}), nullptr);
  EXPECT_EQ(index.find(Gpa(0x1000), 0x8001, {}), nullptr);
}

TEST_F(BlockIndexTest, finds_blocks_that_roam_by_any_rip) {
  Mode user;
  user.cpl = 3;
  user.code_bits = 64;
  Block* roams = block(0x1010, Block::kNowhere + 0x10, user);
  roams->roams = true;
  index.add(roams);
  Block* found = user.may_roam() ? roams : nullptr;
  EXPECT_EQ(index.find(Gpa(0x1010), 0x401010, user), found);
  EXPECT_EQ(index.find(Gpa(0x1010), 0x7f0000001010, user), found);
  EXPECT_EQ(index.find(Gpa(0x2010), 0x401010, user), nullptr);
  EXPECT_TRUE(index.remove(roams));
  EXPECT_EQ(index.find(Gpa(0x1010), 0x401010, user), nullptr);
}

TEST_F(BlockIndexTest, keeps_everything_while_it_grows) {
  for (u64 i = 0; i < 10'000; ++i) index.add(block(i * 16, i));
  EXPECT_EQ(index.size(), 10'000u);
  unsigned found = 0;
  for (u64 i = 0; i < 10'000; ++i) found += index.find(Gpa(i * 16), i, {}) != nullptr;
  EXPECT_EQ(found, 10'000u);
}

TEST_F(BlockIndexTest, a_removed_block_is_gone_and_the_others_stay) {
  std::vector<Block*> blocks;
  for (u64 i = 0; i < 3000; ++i) index.add(blocks.emplace_back(block(i * 16, i)));
  for (u64 i = 0; i < 3000; i += 2) EXPECT_TRUE(index.remove(blocks[i]));
  unsigned wrong = 0;
  for (u64 i = 0; i < 3000; ++i) wrong += (index.find(Gpa(i * 16), i, {}) != nullptr) != (i % 2 == 1);
  EXPECT_EQ(wrong, 0u);
  EXPECT_EQ(index.size(), 1500u);
  EXPECT_FALSE(index.remove(blocks[0]));
}

TEST_F(BlockIndexTest, nothing_is_left_after_clear) {
  index.add(block(0x1000, 0x8000));
  index.clear();
  EXPECT_EQ(index.size(), 0u);
  EXPECT_EQ(index.find(Gpa(0x1000), 0x8000, {}), nullptr);
}

}  // namespace
}  // namespace anykvm::x86
