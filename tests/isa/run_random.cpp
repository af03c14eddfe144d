#include "run_random.h"

#include <gtest/gtest.h>

#include <cstdio>

namespace anykvm::isa {

void run_random(const Filter& filter, u64 usual_seed, u64 count, unsigned code_bits, unsigned most,
                const Prepare& prepare) {
  Generator generator(code_bits, filter);
  Differential differential;
  u64 seed = seed_or(usual_seed);
  count = scaled(count);
  ASSERT_GT(generator.opcodes(), 0u);
  for (u64 i = 0; i < count; ++i) {
    Case test = generator.next(seed + i, differential.place(), most);
    Random random(~test.seed);
    if (prepare) prepare(random, &test.start);
    std::string report = differential.check(test);
    ASSERT_TRUE(report.empty()) << "rerun with ANYKVM_ISA_SEED=" << test.seed << "\n" << report;
  }
  std::printf("           %zu opcodes, seeds from %llu, %llu cases, %llu ended by a fault\n",
              generator.opcodes(), static_cast<unsigned long long>(seed),
              static_cast<unsigned long long>(differential.cases()),
              static_cast<unsigned long long>(differential.faults()));
}

}  // namespace anykvm::isa
