#include "core/io_events.h"

#include <errno.h>
#include <string.h>

#include <algorithm>
#include <mutex>

#include "base/counters.h"
#include "base/trace.h"

namespace anykvm::core {
namespace {

constexpr u32 kKnownFlags =
    KVM_IOEVENTFD_FLAG_DATAMATCH | KVM_IOEVENTFD_FLAG_PIO | KVM_IOEVENTFD_FLAG_DEASSIGN;

Result<> check(const kvm_ioeventfd& request) {
  switch (request.len) {
    case 0:
    case 1:
    case 2:
    case 4:
    case 8:
      break;
    default:
      return Error{EINVAL, "length is not 0, 1, 2, 4 or 8"};
  }
  if (request.addr + request.len < request.addr) return Error{EINVAL, "address range wraps around"};
  if (request.flags & ~kKnownFlags) return Error{EINVAL, "unknown ioeventfd flags"};
  if (request.len == 0 && (request.flags & KVM_IOEVENTFD_FLAG_DATAMATCH))
    return Error{EINVAL, "a match of data needs a length"};
  return {};
}

}  // namespace

bool IoEvents::Entry::collides_with(const Entry& other) const {
  if (bus != other.bus || address != other.address) return false;
  if (length == 0 || other.length == 0) return true;
  return length == other.length && (any_data || other.any_data || data == other.data);
}

bool IoEvents::Entry::matches(IoBus on, u64 at, u64 value, unsigned size) const {
  if (bus != on || address != at) return false;
  return length == 0 || (length == size && (any_data || data == value));
}

Result<> IoEvents::change(const kvm_ioeventfd& request) {
  const bool assigns = !(request.flags & KVM_IOEVENTFD_FLAG_DEASSIGN);
  if (assigns) TRY(check(request));
  Entry entry{request.flags & KVM_IOEVENTFD_FLAG_PIO ? IoBus::kPio : IoBus::kMmio,
              request.addr,
              request.len,
              !(request.flags & KVM_IOEVENTFD_FLAG_DATAMATCH),
              request.datamatch,
              TRY(EventFd::open(request.fd))};
  std::lock_guard lock(m_mutex);
  if (assigns) {
    if (std::ranges::any_of(m_entries, [&](const Entry& other) { return other.collides_with(entry); }))
      return Error{EEXIST, "another ioeventfd takes these writes"};
    m_entries.push_back(std::move(entry));
    m_count = m_entries.size();
    return {};
  }
  auto same = std::ranges::find_if(m_entries, [&](const Entry& other) {
    return other.bus == entry.bus && other.address == entry.address && other.length == entry.length &&
           other.any_data == entry.any_data && (entry.any_data || other.data == entry.data) &&
           other.event.same_as(entry.event);
  });
  if (same == m_entries.end()) return Error{ENOENT, "no such ioeventfd"};
  m_entries.erase(same);
  m_count = m_entries.size();
  return {};
}

bool IoEvents::write(IoBus bus, u64 address, const void* data, unsigned size) const {
  if (!m_count.load(std::memory_order_acquire)) return false;
  u64 value = 0;
  memcpy(&value, data, std::min(size, 8u));
  std::shared_lock lock(m_mutex);
  for (const Entry& entry : m_entries) {
    if (!entry.matches(bus, address, value, size)) continue;
    entry.event.signal();
    ANYKVM_COUNT(ioeventfd_writes);
    return true;
  }
  return false;
}

}  // namespace anykvm::core
