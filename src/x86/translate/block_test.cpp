#include "x86/translate/block.h"

#include <gtest/gtest.h>

namespace anykvm::x86 {
namespace {

Site found(const std::vector<u32>& words, u32 offset, bool fault) {
  Site site;
  EXPECT_TRUE(site_words::find(words, offset, fault, &site));
  return site;
}

TEST(SiteWords, give_back_what_was_packed_in_any_order) {
  const Site last{(256u << 10) - 1, 945, false, FlagsAt::kRound, {kNoRegister, kNoRegister}, 77};
  const Site first{0, 0, true, FlagsAt::kImage, {kNoRegister, kNoRegister}};
  const auto words = site_words::pack({last, first});
  EXPECT_EQ(words.size(), 3u);
  EXPECT_EQ(found(words, first.offset, true), first);
  EXPECT_EQ(found(words, last.offset, false), last);
}

TEST(SiteWords, borrowed_registers_follow_in_a_word_of_their_own) {
  const Site borrows{16, 3, true, FlagsAt::kHost, {kRax, kR13}};
  const Site borrows_one{24, 7, true, FlagsAt::kHost, {kRbx, kNoRegister}};
  const Site plain{40, 9, false, FlagsAt::kHost, {kNoRegister, kNoRegister}};
  const auto words = site_words::pack({borrows, borrows_one, plain});
  EXPECT_EQ(words.size(), 5u);
  EXPECT_EQ(found(words, 16, true), borrows);
  EXPECT_EQ(found(words, 24, true), borrows_one);
  EXPECT_EQ(found(words, 40, false), plain);
}

TEST(SiteWords, a_signal_and_a_return_at_one_offset_differ) {
  const Site signal{16, 3, true, FlagsAt::kHost, {kRax, kRcx}};
  const Site returns{16, 1, false, FlagsAt::kImage, {kNoRegister, kNoRegister}};
  const auto words = site_words::pack({signal, returns});
  EXPECT_EQ(found(words, 16, true), signal);
  EXPECT_EQ(found(words, 16, false), returns);
}

TEST(SiteWords, what_is_not_there_is_not_found) {
  Site site;
  const auto words = site_words::pack({{16, 3, true, FlagsAt::kHost, {kRax, kRcx}}});
  EXPECT_FALSE(site_words::find(words, 16, false, &site));
  EXPECT_FALSE(site_words::find(words, 17, true, &site));
  EXPECT_FALSE(site_words::find({}, 0, true, &site));
}

}  // namespace
}  // namespace anykvm::x86
