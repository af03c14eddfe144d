#pragma once
// The VM's clock (KVM_GET_CLOCK, KVM_SET_CLOCK, and what kvmclock shows to guests): nanoseconds that advance
// with the host's TSC. Owner: Vm. Any thread; m_mutex is a leaf lock.

#include <linux/kvm.h>

#include <atomic>
#include <mutex>

#include "base/expected.h"
#include "base/types.h"

namespace anykvm::core {

class KvmClock {
 public:
  KvmClock();

  u64 ns_at(u64 host_tsc) const;
  kvm_clock_data get() const;
  // EINVAL for unknown flags. With KVM_CLOCK_REALTIME the clock also advances by the real time gone since
  // `data.realtime`.
  Result<> set(const kvm_clock_data& data);
  // Another number after every set(): what guests were shown is stale then.
  u32 generation() const { return m_generation.load(std::memory_order_acquire); }

 private:
  mutable std::mutex m_mutex;
  u64 m_anchor_tsc;  // m_mutex: the clock showed m_anchor_ns when the host TSC was m_anchor_tsc
  u64 m_anchor_ns = 0;
  std::atomic<u32> m_generation{0};
};

}  // namespace anykvm::core
