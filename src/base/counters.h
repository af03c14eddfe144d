#pragma once
// Event counters of the process; the rows are in counters.def.
// Owner: the process. Any thread, relaxed atomics.

#include <atomic>
#include <string>

#include "base/types.h"

namespace anykvm::counters {

struct Counters {
#define ANYKVM_COUNTER(name, description) std::atomic<u64> name{0};
#include "base/counters.def"
#undef ANYKVM_COUNTER
};

extern Counters g_counters;

// One line, "name=value ..." for every counter that is not 0.
std::string summary();

}  // namespace anykvm::counters

#define ANYKVM_COUNT(name) ::anykvm::counters::g_counters.name.fetch_add(1, std::memory_order_relaxed)
