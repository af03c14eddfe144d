#include "core/shared_page.h"

#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>

#include <utility>

namespace anykvm::core {

Result<SharedPage> SharedPage::create(u32 vcpu_id, u64 dirty_ring_bytes) {
  constexpr u64 kDirtyRingOffset = KVM_DIRTY_LOG_PAGE_OFFSET * kPageSize;
  const std::size_t size = dirty_ring_bytes ? kDirtyRingOffset + dirty_ring_bytes : kVcpuMmapSize;
  Fd fd(memfd_create(fmt::format("anykvm-vcpu:{}", vcpu_id).c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return Error{errno, "no memfd for the vCPU"};
  if (ftruncate(fd.get(), static_cast<off_t>(size)) != 0) return Error{errno, "cannot size the vCPU's memfd"};
  // SAFETY: the client could otherwise shrink the file under our mapping, and our accesses would fault.
  if (fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
    return Error{errno, "cannot seal the vCPU's memfd"};
  void* base = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (base == MAP_FAILED) return Error{ENOMEM, "cannot map the vCPU's memfd"};
  return SharedPage(std::move(fd), static_cast<u8*>(base), size);
}

SharedPage::SharedPage(SharedPage&& other) noexcept
    : m_fd(std::move(other.m_fd)), m_base(std::exchange(other.m_base, nullptr)), m_size(other.m_size) {}

SharedPage::~SharedPage() {
  if (m_base) munmap(m_base, m_size);
}

}  // namespace anykvm::core
