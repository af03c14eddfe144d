// Xen's hypercalls that are answered here, because they are frequent: events, polls, timers. The client
// answers the others.
#include <sched.h>
#include <string.h>

#include "core/vcpu.h"
#include "core/vm.h"
#include "core/xen/domain.h"
#include "core/xen/vcpu.h"
#include "x86/mmu/access.h"

namespace anykvm::core::xen {
namespace {

// The guest's memory at linear `address`. False: EFAULT.
template <class T>
bool load(x86::Cpu& cpu, u64 address, T* value) {
  return x86::read_linear(cpu, Gva(address), value, sizeof *value).ok();
}

struct Poll64 {
  u64 ports;
  u32 count, padding;
  u64 timeout;
};
struct Poll32 {
  u32 ports, count, timeout_low, timeout_high;
};
struct SingleshotTimer {
  u64 expires;
  u32 flags;
};

}  // namespace

bool VirtualCpu::long_mode() const { return m_vcpu.state().code64(); }

std::array<u64, 6> VirtualCpu::arguments(bool long_mode) const {
  const auto& gpr = m_vcpu.state().gpr;
  using namespace x86;
  if (long_mode) return {gpr[kRdi], gpr[kRsi], gpr[kRdx], gpr[kR10], gpr[kR8], gpr[kR9]};
  std::array<u64, 6> arguments{gpr[kRbx], gpr[kRcx], gpr[kRdx], gpr[kRsi], gpr[kRdi], gpr[kRbp]};
  for (u64& argument : arguments) argument = static_cast<u32>(argument);
  return arguments;
}

x86::Hypercall VirtualCpu::hypercall() {
  // What user programs may call is rare, and the client's.
  if (m_vcpu.state().cpl != 0) return x86::Hypercall::kClient;
  const bool wide = long_mode();
  const auto result = carry_out(m_vcpu.state().gpr[x86::kRax], arguments(wide), wide);
  if (!result) return x86::Hypercall::kClient;
  m_vcpu.state().gpr[x86::kRax] = static_cast<u64>(*result);
  return x86::Hypercall::kDone;
}

void VirtualCpu::describe_call(kvm_xen_exit& exit) const {
  memset(&exit, 0, sizeof exit);
  exit.type = KVM_EXIT_XEN_HCALL;
  exit.u.hcall.longmode = long_mode();
  exit.u.hcall.cpl = m_vcpu.state().cpl;
  exit.u.hcall.input = m_vcpu.state().gpr[x86::kRax];
  const auto parameters = arguments(long_mode());
  memcpy(exit.u.hcall.params, parameters.data(), sizeof exit.u.hcall.params);
}

// Nothing: the client answers. No call may have done anything then.
std::optional<i64> VirtualCpu::carry_out(u64 number, const std::array<u64, 6>& arguments, bool long_mode) {
  switch (number) {
    case kXenVersion:
      if (arguments[0] == 0 && m_domain.version()) return m_domain.version();
      return std::nullopt;
    case kEventChannelOp:
      return arguments[0] == kEventSend ? send_event(arguments[1]) : std::nullopt;
    case kSchedOp:
      return schedule(arguments[0], arguments[1], long_mode);
    case kVcpuOp:
      return vcpu_op(arguments, long_mode);
    case kSetTimerOp:
      return set_timer(long_mode ? arguments[0] : arguments[0] | arguments[1] << 32);
    default:
      return std::nullopt;
  }
}

std::optional<i64> VirtualCpu::send_event(u64 parameter) {
  u32 port = 0;
  if (!load(m_vcpu.cpu(), parameter, &port)) return kEfault;
  return m_domain.guest_sends(port) ? std::optional<i64>(0) : std::nullopt;
}

std::optional<i64> VirtualCpu::schedule(u64 command, u64 parameter, bool long_mode) {
  const bool polls = command == kSchedPoll && m_vcpu.lapic() && m_domain.sends_events();
  if (polls) return poll(parameter, long_mode);
  if (command != kSchedYield && command != kSchedPoll) return std::nullopt;
  sched_yield();
  return 0;
}

// The vCPU halts after the instruction until one of the ports is pending, an interrupt comes or the time is
// over.
i64 VirtualCpu::poll(u64 parameter, bool long_mode) {
  constexpr u32 kMostPorts = 128;
  Poll64 request{};
  if (long_mode) {
    if (!load(m_vcpu.cpu(), parameter, &request)) return kEfault;
  } else {
    Poll32 narrow{};
    if (!load(m_vcpu.cpu(), parameter, &narrow)) return kEfault;
    request = {narrow.ports, narrow.count, 0, u64{narrow.timeout_high} << 32 | narrow.timeout_low};
  }
  if (request.count > kMostPorts) return kEinval;
  std::array<u32, kMostPorts> list{};
  const std::span<u32> ports(list.data(), request.count);
  if (!ports.empty() &&
      !x86::read_linear(m_vcpu.cpu(), Gva(request.ports), list.data(), request.count * sizeof(u32)).ok())
    return kEfault;
  for (u32 port : ports)
    if (port >= m_domain.layout().ports()) return kEinval;
  // Whoever sends looks at this after it has set the bit.
  m_polled = request.count == 1 && ports[0] != kNoPoll ? ports[0] : kPollsSeveral;
  if (m_domain.any_pending(ports)) {
    m_polled = kNoPoll;
    return 0;
  }
  if (request.timeout) m_poll_deadline = monotonic_ns() + request.timeout;
  m_vcpu.xen_deadline_changed();
  m_vcpu.halt_after_instruction();
  return 0;
}

std::optional<i64> VirtualCpu::vcpu_op(const std::array<u64, 6>& arguments, bool) {
  const u64 command = arguments[0];
  if (!m_timer_port || (command != kSetSingleshotTimer && command != kStopSingleshotTimer))
    return std::nullopt;
  if (arguments[1] != m_id) return kEinval;
  if (command == kStopSingleshotTimer) return stop_timer(), 0;
  SingleshotTimer request{};
  if (!load(m_vcpu.cpu(), arguments[2], &request)) return kEfault;
  start_timer(request.expires);
  return 0;
}

// Linux asks for times that overflowed; Xen takes these for a tenth of a second.
std::optional<i64> VirtualCpu::set_timer(u64 timeout) {
  constexpr u64 kTooFar = u64{1} << 50, kSoon = 100'000'000;
  if (!m_timer_port) return std::nullopt;
  if (!timeout) return stop_timer(), 0;
  const u64 now = clock_ns();
  const bool overflowed = timeout >> 63 || (timeout > now && timeout - now >= kTooFar);
  start_timer(overflowed ? now + kSoon : timeout);
  return 0;
}

}  // namespace anykvm::core::xen
