#include "core/xen/vcpu.h"

#include <errno.h>

#include <algorithm>

#include "core/host_tsc.h"
#include "core/steal_time.h"
#include "core/vcpu.h"
#include "core/vm.h"
#include "core/xen/domain.h"
#include "x86/sys/kvmclock.h"

namespace anykvm::core::xen {
namespace {

constexpr u64 kUpdating = u64{1} << 63;  // of a runstate's entry time, while the rest changes

u64 sum_of(const kvm_xen_vcpu_attr& attribute) {
  const auto& runstate = attribute.u.runstate;
  return runstate.time_running + runstate.time_runnable + runstate.time_blocked + runstate.time_offline;
}

}  // namespace

u64 VirtualCpu::clock_ns() const { return m_vcpu.vm().clock().ns_at(host_tsc()); }

// --- Attributes ---

Result<> VirtualCpu::set_attribute(const kvm_xen_vcpu_attr& attribute) {
  switch (attribute.type) {
    case KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO:
    case kVcpuAttrInfoHva:
      return set_info(attribute);
    case KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO:
      TRY(place(m_time_area, attribute.u.gpa, sizeof(x86::PvclockRecord)));
      m_has_time = m_info.active() || m_time_area.active();
      refresh_time();
      return {};
    case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR:
      TRY(place(m_runstate_area, attribute.u.gpa, m_domain.layout().runstate_size));
      show_runstate();
      return {};
    case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT:
      if (attribute.u.runstate.state > kOffline) return Error{EINVAL, "no such run state"};
      enter_runstate(static_cast<Runstate>(attribute.u.runstate.state));
      return {};
    case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA:
      return set_runstate_data(attribute);
    case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST:
      return adjust_runstate(attribute);
    case KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID:
      if (attribute.u.vcpu_id >= kMaxVcpus) return Error{EINVAL, "number is too large"};
      m_id = attribute.u.vcpu_id;
      return {};
    case KVM_XEN_VCPU_ATTR_TYPE_TIMER:
      if (attribute.u.timer.port && attribute.u.timer.priority != kTwoLevel)
        return Error{EINVAL, "not a two-level event channel"};
      stop_timer();
      m_timer_port = attribute.u.timer.port;
      if (m_timer_port && attribute.u.timer.expires_ns) start_timer(attribute.u.timer.expires_ns);
      return {};
    case KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR:
      if (attribute.u.vector && attribute.u.vector < 16) return Error{EINVAL, "vector below 16"};
      m_upcall_vector = attribute.u.vector;
      return {};
    default:
      return Error{ENOENT, "no such attribute"};
  }
}

Result<> VirtualCpu::get_attribute(kvm_xen_vcpu_attr& attribute) {
  auto& runstate = attribute.u.runstate;
  switch (attribute.type) {
    case KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO:
      attribute.u.gpa = m_info.gpa();
      return {};
    case kVcpuAttrInfoHva:
      attribute.u.gpa = m_info.host();
      return {};
    case KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO:
      attribute.u.gpa = m_time_area.gpa();
      return {};
    case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR:
      if (!m_runstate_area.active()) return Error{ENOENT, "it was not set"};
      attribute.u.gpa = m_runstate_area.gpa();
      return {};
    case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT:
      runstate.state = m_runstate;
      return {};
    case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA:
      runstate = {m_runstate,
                  m_runstate_entry,
                  m_runstate_times[kRunning],
                  m_runstate_times[kRunnable],
                  m_runstate_times[kBlocked],
                  m_runstate_times[kOffline]};
      return {};
    case KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID:
      attribute.u.vcpu_id = m_id;
      return {};
    case KVM_XEN_VCPU_ATTR_TYPE_TIMER:
      // It is either running or its event is pending; nothing between that the client could not see.
      expire();
      attribute.u.timer = {m_timer_port, kTwoLevel, m_timer_expires};
      return {};
    case KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR:
      attribute.u.vector = m_upcall_vector;
      return {};
    case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST:
      return Error{EINVAL, "it can only be set"};
    default:
      return Error{ENOENT, "no such attribute"};
  }
}

Result<> VirtualCpu::place(Area& area, u64 gpa, u32 size) {
  Area placed;
  if (gpa != kNowhere) placed.set_gpa(Gpa(gpa));
  if (placed.active() && !placed.at(m_vcpu.vm().machine().memory(), 0, size))
    return Error{EFAULT, "not in guest memory"};
  area = placed;
  return {};
}

Result<> VirtualCpu::set_info(const kvm_xen_vcpu_attr& attribute) {
  const u64 address = attribute.u.gpa;  // or the host's
  const bool by_host = attribute.type == kVcpuAttrInfoHva;
  const bool off = address == (by_host ? 0 : kNowhere);
  if (!off && address % sizeof(u32)) return Error{ENXIO, "not aligned"};
  Area placed;
  if (by_host && !off) placed.set_host(address);
  u8 byte = 0;
  if (placed.active() && !placed.load(m_vcpu.vm().machine().memory(), 0, &byte, 1))
    return Error{EFAULT, "there is no memory"};
  if (!by_host) TRY(place(placed, address, kVcpuInfoSize));
  {
    std::lock_guard lock(m_info_mutex);
    m_info = placed;
  }
  m_has_info = placed.active();
  m_has_time = placed.active() || m_time_area.active();
  refresh_time();
  return {};
}

// --- Time ---

void VirtualCpu::refresh_time() {
  if (m_info.active()) store_time(m_info, kVcpuTime);
  if (m_time_area.active()) store_time(m_time_area, 0);
}

void VirtualCpu::store_time(const Area& area, u32 offset) {
  const x86::PhysicalMemory& memory = m_vcpu.vm().machine().memory();
  x86::PvclockRecord record = x86::pvclock_record(m_vcpu.cpu());
  if (m_domain.tsc_unstable()) record.flags = 0;
  u32 version = 0;
  if (!area.load(memory, offset, &version, sizeof version)) return;
  version = (version + 1) | 1;
  area.store(memory, offset, &version, sizeof version);
  std::atomic_thread_fence(std::memory_order_release);
  record.version = version + 1;
  const u8* rest = reinterpret_cast<const u8*>(&record) + sizeof version;
  area.store(memory, offset + sizeof version, rest, sizeof record - sizeof version);
  std::atomic_thread_fence(std::memory_order_release);
  area.store(memory, offset, &record.version, sizeof version);
}

void VirtualCpu::start_timer(u64 expires_ns) {
  const u64 now = clock_ns();
  m_timer_expires = expires_ns;
  m_timer_deadline = monotonic_ns() + (expires_ns > now ? expires_ns - now : 0);
  m_vcpu.xen_deadline_changed();
}

void VirtualCpu::stop_timer() {
  m_timer_expires = 0;
  m_timer_deadline = kNever;
}

u64 VirtualCpu::deadline_ns() const { return std::min(m_timer_deadline.load(), m_poll_deadline.load()); }

void VirtualCpu::expire() {
  const u64 now = monotonic_ns();
  if (m_timer_deadline.load() <= now) {
    stop_timer();
    m_domain.send(m_timer_port, m_vcpu.id());
    // A poll ends then even if the event went nowhere, since there was no shared info (as in KVM).
    if (m_polled.load() != kNoPoll) {
      end_poll();
      m_vcpu.end_halt();
    }
  }
  if (m_poll_deadline.load() <= now) {
    m_poll_deadline = kNever;
    m_polled = kNoPoll;
    m_vcpu.end_halt();
  }
}

// --- Run states ---

// What the host's kernel took from a running vCPU counts as runnable.
void VirtualCpu::enter_runstate(Runstate state) {
  const u64 now = clock_ns();
  u64 gone = now - m_runstate_entry;
  if (!m_runstate_entry) m_runstate = kOffline;
  const u64 delay = run_delay_ns();
  if (m_runstate == kRunning && delay > m_last_delay) {
    const u64 stolen = std::min(delay - m_last_delay, gone);
    gone -= stolen;
    m_runstate_times[kRunnable] += stolen;
  }
  m_last_delay = delay;
  m_runstate_times[m_runstate] += gone;
  m_runstate = state;
  m_runstate_entry = now;
  show_runstate();
}

// With the flag the guest knows that it reads a mixture.
void VirtualCpu::show_runstate() {
  if (!m_runstate_area.active()) return;
  const x86::PhysicalMemory& memory = m_vcpu.vm().machine().memory();
  const u32 at = m_domain.layout().runstate_times;
  const bool flag = m_domain.flags_runstate_updates();
  const u64 marked = m_runstate_entry | kUpdating;
  if (flag) m_runstate_area.store(memory, at, &marked, sizeof marked);
  std::atomic_thread_fence(std::memory_order_release);
  const u32 state = m_runstate;
  m_runstate_area.store(memory, 0, &state, sizeof state);
  m_runstate_area.store(memory, at + sizeof marked, m_runstate_times.data(), sizeof m_runstate_times);
  std::atomic_thread_fence(std::memory_order_release);
  m_runstate_area.store(memory, at, &m_runstate_entry, sizeof m_runstate_entry);
}

Result<> VirtualCpu::set_runstate_data(const kvm_xen_vcpu_attr& attribute) {
  const auto& from = attribute.u.runstate;
  if (from.state > kOffline) return Error{EINVAL, "no such run state"};
  if (from.state_entry_time != sum_of(attribute) || clock_ns() < from.state_entry_time)
    return Error{EINVAL, "the times do not add up, or are in the future"};
  m_runstate = static_cast<Runstate>(from.state);
  m_runstate_entry = from.state_entry_time;
  m_runstate_times = {from.time_running, from.time_runnable, from.time_blocked, from.time_offline};
  m_last_delay = run_delay_ns();
  return {};
}

Result<> VirtualCpu::adjust_runstate(const kvm_xen_vcpu_attr& attribute) {
  const auto& by = attribute.u.runstate;
  const bool stays = by.state == ~u64{0};
  if (by.state > kOffline && !stays) return Error{EINVAL, "no such run state"};
  if (by.state_entry_time != sum_of(attribute) || clock_ns() < m_runstate_entry + by.state_entry_time)
    return Error{EINVAL, "the times do not add up, or are in the future"};
  m_runstate_entry += by.state_entry_time;
  m_runstate_times[kRunning] += by.time_running;
  m_runstate_times[kRunnable] += by.time_runnable;
  m_runstate_times[kBlocked] += by.time_blocked;
  m_runstate_times[kOffline] += by.time_offline;
  if (stays)
    show_runstate();
  else
    enter_runstate(static_cast<Runstate>(by.state));
  return {};
}

// --- Events ---

bool VirtualCpu::upcall_pending() {
  if (!m_has_info.load(std::memory_order_relaxed) || !m_domain.upcall_vector()) return false;
  u8 pending = 0;
  return m_info.load(m_vcpu.vm().machine().memory(), kUpcallPending, &pending, sizeof pending) && pending;
}

bool VirtualCpu::raise(unsigned word) {
  const x86::PhysicalMemory& memory = m_vcpu.vm().machine().memory();
  {
    std::lock_guard lock(m_info_mutex);
    const auto before = m_info.set_bit(memory, m_domain.layout().pending_selector, word);
    if (!before) return false;
    if (*before) return true;
    const u8 pending = 1;
    m_info.store(memory, kUpcallPending, &pending, sizeof pending);
  }
  if (const u8 vector = m_upcall_vector; vector && m_vcpu.lapic())
    m_vcpu.lapic()->accept(irqchip::DeliveryMode::kFixed, vector, false, true);
  else
    m_vcpu.look_for_interrupts();
  return true;
}

void VirtualCpu::wake_poll(u32 port) {
  const u32 polled = m_polled.load();
  if (polled == kNoPoll || (polled != port && polled != kPollsSeveral)) return;
  m_polled = kNoPoll;
  m_poll_deadline = kNever;
  m_vcpu.end_halt();
}

}  // namespace anykvm::core::xen
