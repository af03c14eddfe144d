#include "core/kvm_clock.h"

#include <errno.h>
#include <gtest/gtest.h>

#include "core/host_tsc.h"

namespace anykvm::core {
namespace {

constexpr u64 kSecond = 1'000'000'000;

TEST(KvmClock, new_clock_starts_near_zero_and_advances) {
  KvmClock clock;
  u64 first = clock.get().clock, second = clock.get().clock;
  EXPECT_LT(first, kSecond);
  EXPECT_GE(second, first);
}

TEST(KvmClock, set_value_is_read_back_and_advances) {
  KvmClock clock;
  kvm_clock_data data{};
  data.clock = 5000 * kSecond;
  ASSERT_TRUE(clock.set(data).ok());
  EXPECT_GE(clock.get().clock, 5000 * kSecond);
  EXPECT_LT(clock.get().clock, 5001 * kSecond);
}

TEST(KvmClock, realtime_adds_the_time_that_went_by) {
  KvmClock clock;
  kvm_clock_data data = clock.get();
  data.flags = KVM_CLOCK_REALTIME;
  data.clock = 0;
  data.realtime -= 100 * kSecond;
  ASSERT_TRUE(clock.set(data).ok());
  EXPECT_GE(clock.get().clock, 100 * kSecond);
}

TEST(KvmClock, unknown_flag_is_einval) {
  KvmClock clock;
  kvm_clock_data data{};
  data.flags = 1u << 31;
  EXPECT_EQ(clock.set(data).error().code, EINVAL);
}

TEST(KvmClock, time_at_a_tsc_is_linear) {
  KvmClock clock;
  u64 tsc = host_tsc();
  EXPECT_NEAR(static_cast<double>(clock.ns_at(tsc + u64{1000} * host_tsc_khz()) - clock.ns_at(tsc)), kSecond,
              1000.0);
}

}  // namespace
}  // namespace anykvm::core
