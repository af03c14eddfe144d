#include "x86/translate/record_memory.h"

#include <gtest/gtest.h>

namespace anykvm::x86 {
namespace {

TEST(RecordMemory, references_lead_back_to_their_records) {
  auto memory = RecordMemory::create(1 << 20).value();
  ASSERT_TRUE(memory->reserve(64));
  u16* small = memory->make(u16{7});
  u64* large = memory->make(u64{9});
  EXPECT_NE(memory->ref(small), kNoRecord);
  EXPECT_EQ(memory->at<u16>(memory->ref(small)), small);
  EXPECT_EQ(*memory->at<u64>(memory->ref(large)), 9u);
  EXPECT_EQ(reinterpret_cast<std::size_t>(large) % 8, 0u);
}

TEST(RecordMemory, says_when_it_is_full) {
  auto memory = RecordMemory::create(1 << 20).value();
  EXPECT_FALSE(memory->reserve(1 << 20));
  ASSERT_TRUE(memory->reserve(512 << 10));
  for (unsigned i = 0; i < 64 << 10; ++i) memory->make(u64{i});
  EXPECT_FALSE(memory->reserve(512 << 10));
  memory->clear();
  EXPECT_TRUE(memory->reserve(512 << 10));
}

}  // namespace
}  // namespace anykvm::x86
