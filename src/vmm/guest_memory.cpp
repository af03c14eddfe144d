#include "vmm/guest_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <utility>

namespace anykvm::vmm {

// The mapping is made with the kernel's overcommit check (no MAP_NORESERVE): a size that the host can never
// back is refused here, not by the out-of-memory killer later.
Outcome<GuestMemory> GuestMemory::create(u64 size) {
  void* host = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (host == MAP_FAILED) {
    return failure("cannot get {} MiB of memory for the guest: {}", size / kMiB, strerror(errno));
  }
  madvise(host, size, MADV_HUGEPAGE);  // only speed depends on it
  GuestMemory memory;
  memory.m_host = static_cast<u8*>(host);
  memory.m_size = size;
  u64 low = std::min(size, kHoleStart);
  memory.m_ranges.push_back({Gpa(0), low, memory.m_host});
  if (size > low) memory.m_ranges.push_back({Gpa(kHoleEnd), size - low, memory.m_host + low});
  return memory;
}

GuestMemory::GuestMemory(GuestMemory&& other) noexcept
    : m_host(std::exchange(other.m_host, nullptr)),
      m_size(other.m_size),
      m_ranges(std::move(other.m_ranges)) {}

GuestMemory::~GuestMemory() {
  if (m_host) munmap(m_host, m_size);
}

u8* GuestMemory::at(Gpa start, u64 length) const {
  for (const RamRange& range : m_ranges) {
    u64 offset = start - range.start;  // wraps to a huge value below the range
    if (offset < range.size && length <= range.size - offset) return range.host + offset;
  }
  return nullptr;
}

bool GuestMemory::write(Gpa start, std::span<const u8> bytes) const {
  u8* target = at(start, bytes.size());
  if (!target) return false;
  std::copy(bytes.begin(), bytes.end(), target);
  return true;
}

}  // namespace anykvm::vmm
