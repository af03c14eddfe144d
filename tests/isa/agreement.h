#pragma once
// The fixture of tests that give code in bytes. Owner: each test. One thread.

#include <gtest/gtest.h>

#include <functional>

#include "differential.h"

namespace anykvm::isa {

class Agreement : public testing::Test {
 protected:
  using Prepare = std::function<void(UserState&)>;

  // From `kSeeds` random states that `prepare` has adapted, the code ends in the same way on the host CPU and
  // translated.
  void agree(const std::vector<u8>& bytes, const Prepare& prepare = {}, unsigned code_bits = 64) {
    constexpr u64 kSeeds = 30;
    constexpr unsigned kRsp = 4;
    for (u64 seed = 1; seed <= kSeeds; ++seed) {
      Case test;
      test.seed = seed;
      test.code_bits = code_bits;
      Random random(seed);
      test.start = random_state(random, code_bits);
      test.start.gpr[kRsp] = kDataBase + 0x800;
      test.start.mxcsr = 0x1f80;
      test.start.fcw = 0x37f;
      random_memory(random, &test.memory);
      if (prepare) prepare(test.start);
      test.start.rip = differential.place();
      test.bytes = bytes;
      const std::string report = differential.check(test);
      ASSERT_TRUE(report.empty()) << report;
    }
  }

  Differential differential;
};

}  // namespace anykvm::isa
