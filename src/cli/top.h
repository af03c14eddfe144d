#pragma once
// `anykvm top`: the counters of a running process (base/counters.h), again and again.
// Owner: main(). One thread; looks only, changes nothing in the process.

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "base/types.h"
#include "vmm/failure.h"

namespace anykvm::cli {

struct TopOptions {
  int process = 0;
  std::chrono::nanoseconds interval = std::chrono::seconds(1);
  u32 samples = 0;  // 0: until the process ends
};

// The counters of a process at one moment.
struct CounterSample {
  struct Row {
    std::string name, description;
    u64 value = 0;  // of all vCPUs together, also of those that are gone
  };
  std::vector<Row> rows;
  unsigned vcpus = 0;  // that there are
};

// `bytes`: of the file in which a process keeps its counters. Nothing: it is no such file, or not of
// `process`.
std::optional<CounterSample> parse_counters(const std::vector<u8>& bytes, int process);

// What happened from one to the next, in `seconds`, as a table.
std::string counter_table(const CounterSample& before, const CounterSample& now, double seconds);

vmm::Outcome<void> top(const TopOptions& options);

}  // namespace anykvm::cli
