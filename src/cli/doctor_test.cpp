#include "cli/doctor.h"

#include <gtest/gtest.h>

namespace anykvm::cli {
namespace {

TEST(Doctor, json_string_escapes_quotes_and_control_characters) {
  EXPECT_EQ(json_string("a\"b\\c\n"), "\"a\\\"b\\\\c\\u000a\"");
}

TEST(Doctor, text_tells_finding_detail_and_cost) {
  Report report{{{"thing", Finding::kMissing, "not here", "slower"}}};
  EXPECT_EQ(to_text(report),
            "thing                        no       not here\n"
            "                                      cost: slower\n"
            "anykvm can run guests here.\n");
}

TEST(Doctor, a_blocking_finding_makes_the_host_unusable) {
  Report report{{{"thing", Finding::kBlocking, "not here", "nothing runs"}}};
  EXPECT_FALSE(report.usable());
  EXPECT_NE(to_json(report).find("\"usable\": false"), std::string::npos);
  EXPECT_NE(to_json(report).find("\"status\": \"missing\""), std::string::npos);
}

TEST(Doctor, host_is_examined_without_a_blank_name) {
  Report report = examine_host();
  EXPECT_EQ(report.checks.size(), 10u);
  EXPECT_FALSE(report.checks.front().name.empty());
}

}  // namespace
}  // namespace anykvm::cli
