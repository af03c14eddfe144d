#include "core/kvm_clock.h"

#include <errno.h>
#include <time.h>

#include "core/host_tsc.h"

namespace anykvm::core {
namespace {

constexpr u32 kValidFlags = KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;

u64 realtime_ns() {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<u64>(now.tv_sec) * 1'000'000'000 + static_cast<u64>(now.tv_nsec);
}

}  // namespace

KvmClock::KvmClock() : m_anchor_tsc(host_tsc()) { host_tsc_khz(); }

u64 KvmClock::ns_at(u64 tsc) const {
  std::lock_guard lock(m_mutex);
  return tsc >= m_anchor_tsc ? m_anchor_ns + tsc_to_ns(tsc - m_anchor_tsc)
                             : m_anchor_ns - tsc_to_ns(m_anchor_tsc - tsc);
}

kvm_clock_data KvmClock::get() const {
  kvm_clock_data data{};
  data.host_tsc = host_tsc();
  data.realtime = realtime_ns();
  data.clock = ns_at(data.host_tsc);
  data.flags = kValidFlags;
  return data;
}

Result<> KvmClock::set(const kvm_clock_data& data) {
  if (data.flags & ~kValidFlags) return Error{EINVAL, "unknown clock flags"};
  u64 elapsed = 0;
  if (data.flags & KVM_CLOCK_REALTIME) {
    u64 now = realtime_ns();
    if (now > data.realtime) elapsed = now - data.realtime;
  }
  std::lock_guard lock(m_mutex);
  m_anchor_tsc = host_tsc();
  m_anchor_ns = data.clock + elapsed;
  m_generation.fetch_add(1, std::memory_order_release);
  return {};
}

}  // namespace anykvm::core
