#include "core/host_tsc.h"

#include <linux/perf_event.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fd.h"
#include "core/single_waiter.h"

namespace anykvm::core {
namespace {

// perf's mapped page tells how the kernel converts TSC to nanoseconds: ns = tsc * time_mult >> time_shift.
u32 khz_from_perf() {
  perf_event_attr attributes;
  memset(&attributes, 0, sizeof attributes);
  attributes.type = PERF_TYPE_SOFTWARE;
  attributes.size = sizeof attributes;
  attributes.config = PERF_COUNT_SW_DUMMY;
  attributes.exclude_kernel = 1;
  Fd event(static_cast<int>(syscall(SYS_perf_event_open, &attributes, 0, -1, -1, PERF_FLAG_FD_CLOEXEC)));
  if (!event.valid()) return 0;
  void* mapping = mmap(nullptr, kPageSize, PROT_READ, MAP_SHARED, event.get(), 0);
  if (mapping == MAP_FAILED) return 0;
  const auto* page = static_cast<const perf_event_mmap_page*>(mapping);
  u32 khz = 0;
  if (page->cap_user_time && page->time_mult)
    khz = static_cast<u32>((u64{1'000'000} << page->time_shift) / page->time_mult);
  munmap(mapping, kPageSize);
  return khz;
}

struct Sample {
  u64 ns, tsc;
};

// The reading with the least time around it, of a few.
Sample sample() {
  Sample best{};
  u64 best_width = ~u64{0};
  for (int attempt = 0; attempt < 8; ++attempt) {
    u64 before = host_tsc();
    u64 ns = monotonic_ns();
    u64 after = host_tsc();
    if (after - before >= best_width) continue;
    best_width = after - before;
    best = {ns, before + best_width / 2};
  }
  return best;
}

u32 khz_from_clock() {
  constexpr u64 kMeasureNs = 10'000'000;
  Sample first = sample();
  while (monotonic_ns() - first.ns < kMeasureNs) usleep(1000);
  Sample last = sample();
  return static_cast<u32>(scale(last.tsc - first.tsc, 1'000'000, last.ns - first.ns));
}

}  // namespace

u32 host_tsc_khz() {
  static const u32 khz = [] {
    u32 exact = khz_from_perf();
    return exact ? exact : khz_from_clock();
  }();
  return khz;
}

}  // namespace anykvm::core
