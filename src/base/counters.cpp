#include "base/counters.h"

#include <fmt/format.h>

namespace anykvm::counters {

Counters g_counters;

std::string summary() {
  std::string text;
  auto add = [&text](const char* name, const std::atomic<u64>& counter) {
    if (u64 value = counter.load(std::memory_order_relaxed)) text += fmt::format("{}={} ", name, value);
  };
#define ANYKVM_COUNTER(name, description) add(#name, g_counters.name);
#include "base/counters.def"
#undef ANYKVM_COUNTER
  return text;
}

}  // namespace anykvm::counters
