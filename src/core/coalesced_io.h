#pragma once
// Coalesced MMIO and PIO: guest writes that are queued in a ring shared with the client, who drains it at the
// next exit (KVM_REGISTER_COALESCED_MMIO). The VM has one ring; it lies in the first vCPU's mapping. Owner:
// Vm. Any thread; m_mutex is a leaf lock.

#include <linux/kvm.h>

#include <atomic>
#include <mutex>
#include <vector>

#include "base/expected.h"
#include "base/types.h"
#include "core/io_events.h"

namespace anykvm::core {

class CoalescedIo {
 public:
  // `ring` is one page, shared with the client, and outlives this object.
  void set_ring(kvm_coalesced_mmio_ring* ring);
  kvm_coalesced_mmio_ring* ring() const;

  Result<> add(const kvm_coalesced_mmio_zone& zone);
  Result<> remove(const kvm_coalesced_mmio_zone& zone);
  // A guest's write. True: it is in the ring. False: no zone has it, or the ring is full.
  bool write(IoBus bus, u64 address, const void* data, unsigned size);

 private:
  mutable std::mutex m_mutex;
  std::vector<kvm_coalesced_mmio_zone> m_zones;  // m_mutex
  std::atomic<std::size_t> m_count{0};           // of m_zones: most writes find none
  kvm_coalesced_mmio_ring* m_ring = nullptr;     // m_mutex
};

}  // namespace anykvm::core
