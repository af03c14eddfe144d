#pragma once
// Random cases as a GoogleTest. Owner: one test. One thread.

#include "generator.h"

namespace anykvm::isa {

// Runs `count` random cases; stops at the first that differs. Prints the seed of the run.
// `prepare` may change the start state, for instructions with operands that their encoding does not show.
using Prepare = std::function<void(Random&, UserState*)>;
void run_random(const Filter& filter, u64 usual_seed, u64 count, unsigned code_bits = 64, unsigned most = 4,
                const Prepare& prepare = {});

}  // namespace anykvm::isa
