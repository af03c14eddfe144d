#include "x86/ops/compare_flags.h"

#include <gtest/gtest.h>

#include <random>

namespace anykvm::x86 {
namespace {

template <class T>
u64 host_compare_flags(u64 left, u64 right) {
  u64 flags;
  // The stack pointer is moved over the red zone first.
  asm volatile(
      "lea -128(%%rsp), %%rsp\n\tcmp %[right], %[left]\n\tpushfq\n\tpop %[flags]\n\tlea 128(%%rsp), %%rsp"
      : [flags] "=&r"(flags)
      : [left] "r"(static_cast<T>(left)), [right] "r"(static_cast<T>(right))
      : "cc");
  return flags & kFlagsArithmetic;
}

// Number of disagreements with the host over many pairs, half of them close together.
template <class T>
unsigned disagreements() {
  std::mt19937_64 random(42);
  unsigned count = 0;
  for (unsigned i = 0; i < 10000; ++i) {
    u64 left = random(), right = i % 2 ? random() : left + random() % 3 - 1;
    count += compare_flags(left, right, sizeof(T)) != host_compare_flags<T>(left, right);
  }
  return count;
}

TEST(CompareFlags, random_bytes_agree_with_host) { EXPECT_EQ(disagreements<u8>(), 0u); }
TEST(CompareFlags, random_words_agree_with_host) { EXPECT_EQ(disagreements<u16>(), 0u); }
TEST(CompareFlags, random_doublewords_agree_with_host) { EXPECT_EQ(disagreements<u32>(), 0u); }
TEST(CompareFlags, random_quadwords_agree_with_host) { EXPECT_EQ(disagreements<u64>(), 0u); }

}  // namespace
}  // namespace anykvm::x86
