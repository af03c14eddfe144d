#include "base/counters.h"

#include <gmock/gmock.h>
#include <sys/wait.h>
#include <unistd.h>

namespace anykvm::counters {
namespace {

using ::testing::HasSubstr;

TEST(Counters, of_vcpus_that_are_gone_stay_in_the_sum) {
  publish();
  CpuCounts* first = take_cpu_counts();
  CpuCounts* second = take_cpu_counts();
  first->runs += 3;
  second->runs += 4;
  give_back(first);
  EXPECT_THAT(summary(), HasSubstr("runs=7 "));
  give_back(second);
  EXPECT_THAT(summary(), HasSubstr("runs=7 "));
  CpuCounts* third = take_cpu_counts();
  EXPECT_EQ(third->runs, 0u);
  give_back(third);
}

TEST(Counters, of_a_forked_child_are_its_own) {
  publish();
  ANYKVM_COUNT(timer_arms);
  const pid_t child = fork();
  if (child == 0) {
    ANYKVM_COUNT_SEVERAL(timer_arms, 1000);
    publish();
    ANYKVM_COUNT_SEVERAL(timer_arms, 5);
    _exit(summary().find("timer_arms=5 ") == std::string::npos);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_THAT(summary(), HasSubstr("timer_arms=1 "));
}

}  // namespace
}  // namespace anykvm::counters
