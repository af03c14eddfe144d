#pragma once
// Which events the guest's performance counters may count (KVM_SET_PMU_EVENT_FILTER, KVM API 4.120).
// Owner: Vm. Any thread; vCPUs look while the client changes it.

#include <linux/kvm.h>

#include <atomic>
#include <memory>
#include <vector>

#include "base/expected.h"
#include "base/types.h"

namespace anykvm::core {

inline constexpr u32 kMostFilterEvents = 300;

class CounterFilter {
 public:
  struct Rules {
    bool allow = false;  // what is named; otherwise everything else is
    u32 fixed = 0;       // the fixed counters named
    // The unit mask matches if its bits in `mask` are those of `match`.
    struct Event {
      u16 select;
      u8 mask, match;
      bool exclude;
    };
    std::vector<Event> events;
  };
  // EINVAL: an unknown action or flags. E2BIG: too many events.
  static Result<> check(const kvm_pmu_event_filter& header);
  // Of a header that was checked. EINVAL: bits that no entry has.
  static Result<Rules> rules_of(const kvm_pmu_event_filter& header, const std::vector<u64>& events);

  void set(Rules rules);
  bool allows(u64 select) const;
  bool allows_fixed(unsigned index) const;

 private:
  std::atomic<std::shared_ptr<const Rules>> m_rules{nullptr};  // null: everything is allowed
};

}  // namespace anykvm::core
