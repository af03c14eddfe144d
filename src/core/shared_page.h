#pragma once
// What a vCPU shares with the client: struct kvm_run, the page for port data, the page of the coalesced
// ring and, far behind, the dirty ring, in a memfd whose descriptor is the vCPU's (DESIGN D2). Owner: Vcpu;
// the client maps the same pages. Whatever is read from here may change at any moment.

#include <linux/kvm.h>

#include "base/expected.h"
#include "base/fd.h"
#include "base/types.h"

namespace anykvm::core {

// What KVM_GET_VCPU_MMAP_SIZE answers.
inline constexpr std::size_t kVcpuMmapSize = (KVM_COALESCED_MMIO_PAGE_OFFSET + 1) * kPageSize;

class SharedPage {
 public:
  // `dirty_ring_bytes`: 0 if there is no dirty ring.
  static Result<SharedPage> create(u32 vcpu_id, u64 dirty_ring_bytes);
  SharedPage(SharedPage&& other) noexcept;
  ~SharedPage();

  kvm_run& run() const { return *reinterpret_cast<kvm_run*>(m_base); }
  u8* pio_data() const { return m_base + KVM_PIO_PAGE_OFFSET * kPageSize; }
  kvm_coalesced_mmio_ring* ring() const {
    return reinterpret_cast<kvm_coalesced_mmio_ring*>(m_base + KVM_COALESCED_MMIO_PAGE_OFFSET * kPageSize);
  }
  kvm_dirty_gfn* dirty_ring() const {
    return reinterpret_cast<kvm_dirty_gfn*>(m_base + KVM_DIRTY_LOG_PAGE_OFFSET * kPageSize);
  }
  // The descriptor, once: from then on it is the client's to close.
  Fd take_descriptor() { return std::move(m_fd); }

 private:
  SharedPage(Fd fd, u8* base, std::size_t size) : m_fd(std::move(fd)), m_base(base), m_size(size) {}

  Fd m_fd;
  u8* m_base;
  std::size_t m_size;
};

}  // namespace anykvm::core
