#pragma once
// Keeps the TSCs of a VM's vCPUs together although the client writes them one after the other: a value that
// is close to what the others show means "the same as the others" (KVM API: the client restores TSCs by
// KVM_SET_MSRS). Owner: Vm. Any thread.

#include <mutex>

#include "base/types.h"

namespace anykvm::core {

class TscSync {
 public:
  // The offset for a vCPU that is made now, at `khz`; `offset` if it is the first, or at another rate.
  u64 join(u64 offset, u32 khz);
  // The offset for a vCPU whose client wrote `value` to the TSC, which `offset` would give.
  u64 write(u64 value, u64 offset, u32 khz);
  // The client set this offset itself.
  void set(u64 offset, u32 khz);

 private:
  std::mutex m_mutex;
  u64 m_offset = 0;  // m_mutex; the last one given out
  u32 m_khz = 0;     // m_mutex; the rate it belongs to; 0: none yet
  bool m_written = false;
};

}  // namespace anykvm::core
