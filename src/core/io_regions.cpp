#include "core/io_regions.h"

#include <errno.h>

#include <algorithm>
#include <mutex>

namespace anykvm::core {
namespace {

constexpr u32 kKnownFlags = KVM_IOREGION_PIO | KVM_IOREGION_POSTED_WRITES | KVM_IOREGION_DEASSIGN;
constexpr std::size_t kMostRegions = 1000;  // as the kernel's limit on devices of a bus
constexpr u64 kPorts = 0x10000;

Result<> check(const kvm_ioregion& request) {
  if (request.flags & ~kKnownFlags) return Error{EINVAL, "unknown ioregion flags"};
  if (std::ranges::any_of(request.pad, [](u8 byte) { return byte != 0; }))
    return Error{EINVAL, "the padding is not 0"};
  if (!request.memory_size) return Error{EINVAL, "the region is empty"};
  const u64 last = request.guest_paddr + request.memory_size - 1;
  if (last < request.guest_paddr) return Error{EINVAL, "the region wraps around"};
  if ((request.flags & KVM_IOREGION_PIO) && last >= kPorts) return Error{EINVAL, "there are no such ports"};
  return {};
}

}  // namespace

Result<> IoRegions::set(const kvm_ioregion& request) {
  TRY(check(request));
  const Key key{request.flags & KVM_IOREGION_PIO ? IoBus::kPio : IoBus::kMmio, request.guest_paddr};
  std::lock_guard lock(m_mutex);
  if (request.flags & KVM_IOREGION_DEASSIGN)
    TRY(remove(key, request.memory_size));
  else
    TRY(add(key, request));
  m_any = !m_regions.empty();
  return {};
}

// m_mutex.
Result<> IoRegions::add(const Key& key, const kvm_ioregion& request) {
  if (collides(key, request.memory_size)) return Error{EEXIST, "another region is there"};
  if (m_regions.size() == kMostRegions) return Error{ENOSPC, "too many regions"};
  m_regions[key] = {request.memory_size, request.user_data, (request.flags & KVM_IOREGION_POSTED_WRITES) != 0,
                    TRY(channel_for(request))};
  return {};
}

// m_mutex. Whoever waits for a server that no region has any longer is sent away.
Result<> IoRegions::remove(const Key& key, u64 size) {
  auto region = m_regions.find(key);
  if (region == m_regions.end() || region->second.size != size) return Error{ENOENT, "no such region"};
  const std::shared_ptr<IoChannel> channel = region->second.channel;
  m_regions.erase(region);
  if (std::ranges::none_of(m_regions, [&](const auto& other) { return other.second.channel == channel; }))
    channel->close();
  return {};
}

// m_mutex.
bool IoRegions::collides(const Key& key, u64 size) const {
  auto next = m_regions.lower_bound(key);
  if (next != m_regions.end() && next->first.first == key.first && next->first.second - key.second < size)
    return true;
  if (next == m_regions.begin()) return false;
  auto before = std::prev(next);
  return before->first.first == key.first && key.second - before->first.second < before->second.size;
}

// m_mutex. Regions that name the same files take turns there.
Result<std::shared_ptr<IoChannel>> IoRegions::channel_for(const kvm_ioregion& request) const {
  for (const auto& [key, region] : m_regions)
    if (region.channel->same_as(request.read_fd, request.write_fd)) return region.channel;
  return IoChannel::create(request.read_fd, request.write_fd);
}

std::optional<IoRegions::Hit> IoRegions::find(IoBus bus, u64 address, u64 size) const {
  if (!m_any.load(std::memory_order_acquire)) return std::nullopt;
  std::shared_lock lock(m_mutex);
  auto next = m_regions.upper_bound({bus, address});
  if (next == m_regions.begin()) return std::nullopt;
  const auto& [key, region] = *std::prev(next);
  const u64 offset = address - key.second;
  if (key.first != bus || offset >= region.size || size > region.size - offset) return std::nullopt;
  return Hit{region.channel, region.user_data, offset, bus == IoBus::kPio, region.posted_writes};
}

}  // namespace anykvm::core
