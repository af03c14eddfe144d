#pragma once
// Which MSRs the guest may not touch by itself (KVM_X86_SET_MSR_FILTER, KVM API 4.97).
// Owner: Vm. Any thread; vCPUs look while the client changes it.

#include <linux/kvm.h>

#include <atomic>
#include <memory>
#include <vector>

#include "base/expected.h"
#include "base/types.h"

namespace anykvm::core {

class MsrFilter {
 public:
  // EINVAL: unknown flags, a range that is too large, or everything denied. EFAULT: a bad bitmap.
  Result<> set(const kvm_msr_filter& filter);
  bool denies(u32 index, bool write) const;

 private:
  struct Range {
    u32 flags, base, count;
    std::vector<u8> bitmap;
  };
  struct Rules {
    bool default_allow = true;
    std::vector<Range> ranges;
  };
  std::atomic<std::shared_ptr<const Rules>> m_rules{nullptr};  // null: nothing is denied
};

}  // namespace anykvm::core
