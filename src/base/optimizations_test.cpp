#include "base/optimizations.h"

#include <gtest/gtest.h>

namespace anykvm {
namespace {

TEST(Optimizations, all_are_on_unless_told_otherwise) {
  const Optimizations all = parse_optimizations("");
  EXPECT_TRUE(all.links);
  EXPECT_TRUE(all.slots);
  EXPECT_TRUE(all.polling);
}

TEST(Optimizations, a_minus_switches_one_off) {
  const Optimizations some = parse_optimizations("-slots,-links");
  EXPECT_FALSE(some.slots);
  EXPECT_FALSE(some.links);
  EXPECT_TRUE(some.jumps);
}

TEST(Optimizations, none_leaves_what_comes_after_it) {
  Optimizations links_only{};
#define ANYKVM_OPTIMIZATION(name, description) links_only.name = false;
#include "base/optimizations.def"
#undef ANYKVM_OPTIMIZATION
  EXPECT_EQ(parse_optimizations("none"), links_only);
  links_only.links = true;
  EXPECT_EQ(parse_optimizations("none,links"), links_only);
  EXPECT_EQ(parse_optimizations("none,+links"), links_only);
}

TEST(Optimizations, unknown_names_change_nothing) {
  EXPECT_EQ(parse_optimizations("-speed,,-"), Optimizations{});
}

}  // namespace
}  // namespace anykvm
