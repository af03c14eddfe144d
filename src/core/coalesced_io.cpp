#include "core/coalesced_io.h"

#include <errno.h>
#include <string.h>

#include <algorithm>
#include <atomic>

#include "base/counters.h"

namespace anykvm::core {
namespace {

constexpr u32 kRingEntries = (kPageSize - sizeof(kvm_coalesced_mmio_ring)) / sizeof(kvm_coalesced_mmio);

bool holds(const kvm_coalesced_mmio_zone& zone, u64 address, u64 size) {
  return address >= zone.addr && size <= zone.size && address - zone.addr <= zone.size - size;
}

}  // namespace

void CoalescedIo::set_ring(kvm_coalesced_mmio_ring* ring) {
  std::lock_guard lock(m_mutex);
  m_ring = ring;
}

kvm_coalesced_mmio_ring* CoalescedIo::ring() const {
  std::lock_guard lock(m_mutex);
  return m_ring;
}

Result<> CoalescedIo::add(const kvm_coalesced_mmio_zone& zone) {
  if (zone.pio > 1) return Error{EINVAL, "pio is neither 0 nor 1"};
  std::lock_guard lock(m_mutex);
  m_zones.push_back(zone);
  m_count = m_zones.size();
  return {};
}

// Removes every zone that holds the given range, as the kernel does; none is no error.
Result<> CoalescedIo::remove(const kvm_coalesced_mmio_zone& zone) {
  if (zone.pio > 1) return Error{EINVAL, "pio is neither 0 nor 1"};
  std::lock_guard lock(m_mutex);
  std::erase_if(m_zones, [&zone](const kvm_coalesced_mmio_zone& candidate) {
    return candidate.pio == zone.pio && holds(candidate, zone.addr, zone.size);
  });
  m_count = m_zones.size();
  return {};
}

bool CoalescedIo::write(IoBus bus, u64 address, const void* data, unsigned size) {
  if (!m_count.load(std::memory_order_acquire)) return false;
  const u32 pio = bus == IoBus::kPio;
  std::lock_guard lock(m_mutex);
  auto in_zone = [&](const kvm_coalesced_mmio_zone& zone) {
    return zone.pio == pio && holds(zone, address, size);
  };
  if (!m_ring || std::ranges::none_of(m_zones, in_zone)) return false;
  // The client owns `first` and may have written anything into `last`.
  std::atomic_ref<u32> first(m_ring->first), last(m_ring->last);
  const u32 insert = last.load(std::memory_order_relaxed);
  if (insert >= kRingEntries) return false;
  const u32 next = (insert + 1) % kRingEntries;
  if (next == first.load(std::memory_order_acquire)) return false;
  kvm_coalesced_mmio& entry = m_ring->coalesced_mmio[insert];
  entry.phys_addr = address;
  entry.len = size;
  entry.pio = pio;
  memcpy(entry.data, data, std::min<std::size_t>(size, sizeof entry.data));
  last.store(next, std::memory_order_release);
  ANYKVM_COUNT(coalesced_writes);
  return true;
}

}  // namespace anykvm::core
