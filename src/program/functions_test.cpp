#include "program/functions.h"

#include <gtest/gtest.h>

namespace anykvm::program {
namespace {

[[gnu::noinline]] int sum(int a, int b) {
  asm volatile("");
  return a + b;
}

const u8* code_of(int (*function)(int, int)) { return reinterpret_cast<const u8*>(function); }

TEST(Functions, AreFoundInTheUnwindTables) {
  const Image image = main_program();
  ASSERT_NE(image.unwind_table, nullptr);
  ASSERT_FALSE(image.code.empty());
  const Functions functions(image.unwind_table);
  const u8* begin = code_of(&sum);
  const auto found = functions.around(begin + 1);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->begin, begin);
  EXPECT_GT(found->end, begin + 1);
  EXPECT_LT(found->end, begin + 4096);
  bool in_image = false;
  for (const Range& range : image.code) in_image = in_image || range.has(begin);
  EXPECT_TRUE(in_image);
}

TEST(Functions, NothingOutside) {
  const Functions functions(main_program().unwind_table);
  const u8 elsewhere[16]{};
  EXPECT_FALSE(functions.around(elsewhere));
  EXPECT_FALSE(functions.around(nullptr));
  EXPECT_FALSE(Functions(nullptr).around(code_of(&sum)));
  const u8 other_form[16]{1, 0x1b, 0x03, 0x3c};
  EXPECT_FALSE(Functions(other_form).around(other_form));
}

}  // namespace
}  // namespace anykvm::program
