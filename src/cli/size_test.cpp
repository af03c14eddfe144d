#include "cli/size.h"

#include <gtest/gtest.h>

namespace anykvm::cli {
namespace {

TEST(ParseSize, suffixes_are_powers_of_1024) {
  EXPECT_EQ(parse_size("4096"), 4096u);
  EXPECT_EQ(parse_size("64K"), u64{64} << 10);
  EXPECT_EQ(parse_size("512M"), u64{512} << 20);
  EXPECT_EQ(parse_size("2g"), u64{2} << 30);
  EXPECT_EQ(parse_size("1T"), u64{1} << 40);
  EXPECT_EQ(parse_size("512MiB"), u64{512} << 20);
  EXPECT_EQ(parse_size("512MB"), u64{512} << 20);
}

TEST(ParseSize, what_is_no_size_is_nothing) {
  EXPECT_FALSE(parse_size(""));
  EXPECT_FALSE(parse_size("M"));
  EXPECT_FALSE(parse_size("-1M"));
  EXPECT_FALSE(parse_size("+1M"));
  EXPECT_FALSE(parse_size("1.5G"));
  EXPECT_FALSE(parse_size("1X"));
  EXPECT_FALSE(parse_size("1 G"));
  EXPECT_FALSE(parse_size("1Mx"));
}

TEST(ParseSize, overflow_is_nothing) {
  EXPECT_FALSE(parse_size("18446744073709551616"));
  EXPECT_FALSE(parse_size("16777216T"));
}

}  // namespace
}  // namespace anykvm::cli
