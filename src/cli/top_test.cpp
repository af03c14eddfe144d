#include "cli/top.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include "base/counters.h"

namespace anykvm::cli {
namespace {

using ::testing::HasSubstr;

CounterSample sample(u64 walks, unsigned vcpus) {
  CounterSample made;
  made.rows = {{"tlb_misses", "page walks", walks}};
  made.vcpus = vcpus;
  return made;
}

TEST(Top, shows_totals_and_what_happened_in_a_second) {
  const std::string table = counter_table(sample(100, 2), sample(300, 2), 0.5);
  EXPECT_THAT(table, HasSubstr("2 vCPUs"));
  EXPECT_THAT(table, ::testing::ContainsRegex("tlb_misses +300 +400 +page walks"));
}

TEST(Top, takes_no_other_file_for_counters) {
  EXPECT_FALSE(parse_counters({}, 1));
  EXPECT_FALSE(parse_counters(std::vector<u8>(100'000), 1));
}

TEST(Top, says_that_a_process_has_no_counters) {
  EXPECT_EQ(top({.process = getppid(), .samples = 1}).error().text,
            "top " + std::to_string(getppid()) + ": the process has made no guest on anykvm");
}

TEST(Top, reads_what_a_process_counts) {
  counters::publish();
  counters::CpuCounts* counts = counters::take_cpu_counts();
  counts->halts += 7;
  ANYKVM_COUNT(world_stops);
  testing::internal::CaptureStdout();
  auto shown = top({.process = getpid(), .interval = std::chrono::milliseconds(10), .samples = 1});
  const std::string table = testing::internal::GetCapturedStdout();
  counters::give_back(counts);
  ASSERT_TRUE(shown.ok());
  EXPECT_THAT(table, HasSubstr("1 vCPUs"));
  EXPECT_THAT(table, ::testing::ContainsRegex("halts +7 "));
  EXPECT_THAT(table, ::testing::ContainsRegex("world_stops +1 "));
}

}  // namespace
}  // namespace anykvm::cli
