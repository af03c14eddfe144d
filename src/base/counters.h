#pragma once
// Event counters of the process; the rows are in counters.def. They lie in a memfd from the first VM on,
// where `anykvm top` reads them (base/counters_file.h), so they cost no more than the counting. Owner: the
// process. Any thread; a CpuCounts only by the thread that runs its vCPU.

#include <atomic>
#include <string>

#include "base/types.h"

namespace anykvm::counters {

struct Counters {
#define ANYKVM_COUNTER(name, description) std::atomic<u64> name{0};
#define ANYKVM_CPU_COUNTER(name, description)
#include "base/counters.def"
#undef ANYKVM_COUNTER
#undef ANYKVM_CPU_COUNTER
};

// Of one vCPU.
struct CpuCounts {
#define ANYKVM_COUNTER(name, description)
#define ANYKVM_CPU_COUNTER(name, description) u64 name = 0;
#include "base/counters.def"
#undef ANYKVM_COUNTER
#undef ANYKVM_CPU_COUNTER
};

// The process's; never null.
extern std::atomic<Counters*> g_counters;

// Makes the counters visible to others; once, by the first VM. Where that fails they still count.
void publish();

// A place for a vCPU's counts, until it is given back. What it counted stays in the totals.
CpuCounts* take_cpu_counts();
void give_back(CpuCounts* counts);

// One line, "name=value ..." for every counter that is not 0.
std::string summary();

}  // namespace anykvm::counters

#define ANYKVM_COUNT(name) \
  ::anykvm::counters::g_counters.load(std::memory_order_relaxed)->name.fetch_add(1, std::memory_order_relaxed)
#define ANYKVM_COUNT_SEVERAL(name, number)                       \
  ::anykvm::counters::g_counters.load(std::memory_order_relaxed) \
      ->name.fetch_add(number, std::memory_order_relaxed)
