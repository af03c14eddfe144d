#include "core/tsc_sync.h"

#include <gtest/gtest.h>

namespace anykvm::core {
namespace {

constexpr u32 kKhz = 1000;
constexpr u64 kSecond = 1'000'000;

TEST(TscSync, new_vcpu_at_the_same_rate_takes_the_offset_of_the_others) {
  TscSync sync;
  EXPECT_EQ(sync.join(100, kKhz), 100u);
  EXPECT_EQ(sync.join(500, kKhz), 100u);
  EXPECT_EQ(sync.join(500, 2 * kKhz), 500u);
}

TEST(TscSync, first_write_is_taken_as_it_is) {
  TscSync sync;
  sync.join(100, kKhz);
  EXPECT_EQ(sync.write(1, 200, kKhz), 200u);
  EXPECT_EQ(sync.join(100, kKhz), 200u);
}

TEST(TscSync, write_close_to_the_last_one_means_the_same) {
  TscSync sync;
  sync.write(1, 200, kKhz);
  EXPECT_EQ(sync.write(1, 200 + kSecond, kKhz), 200u);
  EXPECT_EQ(sync.write(1, 200 - kSecond, kKhz), 200u);
}

TEST(TscSync, write_far_from_the_last_one_is_taken_as_it_is) {
  TscSync sync;
  sync.write(1, 200, kKhz);
  EXPECT_EQ(sync.write(1, 201 + kSecond, kKhz), 201 + kSecond);
}

TEST(TscSync, zero_joins_the_others) {
  TscSync sync;
  sync.join(100, kKhz);
  EXPECT_EQ(sync.write(0, 5 * kSecond, kKhz), 100u);
}

TEST(TscSync, offset_set_by_the_client_counts_for_later_ones) {
  TscSync sync;
  sync.set(300, kKhz);
  EXPECT_EQ(sync.join(100, kKhz), 300u);
}

}  // namespace
}  // namespace anykvm::core
