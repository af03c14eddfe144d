#include "vmm/escape.h"

#include <gtest/gtest.h>

#include <string>

namespace anykvm::vmm {
namespace {

EscapeFilter::Result feed(EscapeFilter& filter, const std::string& text) {
  return filter.feed({reinterpret_cast<const u8*>(text.data()), text.size()});
}

std::string guest(const EscapeFilter::Result& result) { return {result.bytes.begin(), result.bytes.end()}; }

TEST(EscapeFilter, plain_text_passes) {
  EscapeFilter filter;
  auto result = feed(filter, "ls x\r\x03");
  EXPECT_EQ(guest(result), "ls x\r\x03");
  EXPECT_FALSE(result.quit || result.help);
}

TEST(EscapeFilter, ctrl_a_x_quits_also_across_two_reads) {
  EscapeFilter filter;
  EXPECT_FALSE(feed(filter, "\x01").quit);
  EXPECT_TRUE(feed(filter, "x").quit);
}

TEST(EscapeFilter, ctrl_a_a_sends_ctrl_a) {
  EscapeFilter filter;
  EXPECT_EQ(guest(feed(filter,
                       "\x01"
                       "ab")),
            "\x01"
            "b");
}

TEST(EscapeFilter, ctrl_a_h_and_question_mark_ask_for_help) {
  EscapeFilter filter;
  EXPECT_TRUE(feed(filter, "\x01h").help);
  EXPECT_TRUE(feed(filter, "\x01?").help);
}

TEST(EscapeFilter, unknown_key_after_ctrl_a_is_swallowed) {
  EscapeFilter filter;
  EXPECT_EQ(guest(feed(filter, "\x01zok")), "ok");
}

}  // namespace
}  // namespace anykvm::vmm
