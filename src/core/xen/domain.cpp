#include "core/xen/domain.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include <algorithm>
#include <array>

#include "base/client_memory.h"
#include "core/host_tsc.h"
#include "core/vcpu.h"
#include "core/vm.h"
#include "x86/mmu/access.h"

namespace anykvm::core::xen {
namespace {

constexpr u32 kEnabledFlags =
    KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL | KVM_XEN_HVM_CONFIG_EVTCHN_SEND | kConfigTscUnstable;
constexpr u64 kNsPerSecond = 1'000'000'000;
constexpr u8 kFirstVector = 16;

}  // namespace

Result<> Domain::configure(const kvm_xen_hvm_config& config) {
  if (config.flags & ~kEnabledFlags) return Error{EINVAL, "unknown flags"};
  const bool has_pages =
      config.blob_addr_32 || config.blob_addr_64 || config.blob_size_32 || config.blob_size_64;
  if ((config.flags & KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL) && has_pages)
    return Error{EINVAL, "the hypercall page is made in here"};
  std::lock_guard lock(m_mutex);
  m_config = config;
  m_flags = config.flags;
  m_msr = config.msr;
  m_vm.hyperv().set_beside_xen(takes_hypercalls());
  return {};
}

// --- Attributes ---

Result<> Domain::set_attribute(const kvm_xen_hvm_attr& attribute) {
  std::lock_guard lock(m_mutex);
  switch (attribute.type) {
    case KVM_XEN_ATTR_TYPE_LONG_MODE:
      m_long_mode = attribute.u.long_mode != 0;
      write_wall_clock();
      return {};
    case KVM_XEN_ATTR_TYPE_SHARED_INFO:
    case kAttrSharedInfoHva:
      return set_shared_info(attribute);
    case KVM_XEN_ATTR_TYPE_UPCALL_VECTOR:
      if (attribute.u.vector && attribute.u.vector < kFirstVector) return Error{EINVAL, "vector below 16"};
      m_upcall_vector = attribute.u.vector;
      return {};
    case KVM_XEN_ATTR_TYPE_EVTCHN:
      return change_binding(attribute);
    case KVM_XEN_ATTR_TYPE_XEN_VERSION:
      m_version = attribute.u.xen_version;
      return {};
    case kAttrRunstateUpdateFlag:
      m_runstate_update_flag = attribute.u.long_mode != 0;  // a byte at the same place
      return {};
    default:
      return Error{ENOENT, "no such attribute"};
  }
}

Result<> Domain::get_attribute(kvm_xen_hvm_attr& attribute) {
  std::lock_guard lock(m_mutex);
  switch (attribute.type) {
    case KVM_XEN_ATTR_TYPE_LONG_MODE:
      attribute.u.long_mode = m_long_mode;
      return {};
    case KVM_XEN_ATTR_TYPE_SHARED_INFO: {
      const u64 gpa = m_shared_info.gpa();
      attribute.u.shared_info.gfn = gpa == kNowhere ? kNowhere : gpa / kPageSize;
      return {};
    }
    case kAttrSharedInfoHva:
      attribute.u.shared_info.gfn = m_shared_info.host();
      return {};
    case KVM_XEN_ATTR_TYPE_UPCALL_VECTOR:
      attribute.u.vector = m_upcall_vector;
      return {};
    case KVM_XEN_ATTR_TYPE_XEN_VERSION:
      attribute.u.xen_version = m_version;
      return {};
    case kAttrRunstateUpdateFlag:
      attribute.u.long_mode = m_runstate_update_flag;
      return {};
    default:
      return Error{ENOENT, "no such attribute"};
  }
}

Result<> Domain::set_shared_info(const kvm_xen_hvm_attr& attribute) {
  const u64 value = attribute.u.shared_info.gfn;  // or the host's address
  const bool by_host = attribute.type == kAttrSharedInfoHva;
  if (by_host && value % kPageSize) return Error{EINVAL, "not a page's address"};
  Area area;
  if (by_host && value)
    area.set_host(value);
  else if (!by_host && value != kNowhere)
    area.set_gpa(Gpa(value * kPageSize));
  u8 byte = 0;
  if (area.active() && !area.load(m_vm.machine().memory(), 0, &byte, 1))
    return Error{EFAULT, "the page is not in memory"};
  m_shared_info = area;
  write_wall_clock();
  return {};
}

// The time at which the VM's clock was 0, in whole seconds and the rest. The version is odd meanwhile.
void Domain::write_wall_clock() {
  if (!m_shared_info.active()) return;
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  const u64 real = static_cast<u64>(now.tv_sec) * kNsPerSecond + static_cast<u64>(now.tv_nsec);
  const u64 boot = real - m_vm.clock().ns_at(host_tsc());
  const x86::PhysicalMemory& memory = m_vm.machine().memory();
  const u32 at = layout().wall_clock;
  u32 version = 0;
  if (!m_shared_info.load(memory, at, &version, sizeof version)) return;
  version = (version + 1) | 1;
  const u32 odd = version, even = version + 1;
  const u64 seconds = boot / kNsPerSecond;
  const u32 time[] = {static_cast<u32>(seconds), static_cast<u32>(boot % kNsPerSecond)};
  const u32 high = static_cast<u32>(seconds >> 32);
  m_shared_info.store(memory, at, &odd, sizeof odd);
  std::atomic_thread_fence(std::memory_order_release);
  m_shared_info.store(memory, at + sizeof odd, time, sizeof time);
  m_shared_info.store(memory, layout().wall_clock_high, &high, sizeof high);
  std::atomic_thread_fence(std::memory_order_release);
  m_shared_info.store(memory, at, &even, sizeof even);
}

// --- The hypercall page ---

std::optional<bool> Domain::write_msr(x86::Cpu& cpu, u32 index, u64 value) {
  if (index != m_msr.load(std::memory_order_relaxed) || !index) return std::nullopt;
  std::lock_guard lock(m_mutex);
  const bool long_mode = cpu.state().efer & x86::kEferLma;
  if (m_long_mode.exchange(long_mode) != long_mode) write_wall_clock();
  return write_hypercall_page(cpu, value);
}

// 128 pieces of 32 bytes: mov eax, number; VMCALL or VMMCALL; ret. Or a page of the client's.
bool Domain::write_hypercall_page(x86::Cpu& cpu, u64 value) {
  const Gpa address(value & ~(kPageSize - 1));
  const u64 number = value % kPageSize;
  std::array<u8, kPageSize> page;
  if (takes_hypercalls()) {
    if (number) return false;
    const u8 last = cpu.model().intel() ? 0xc1 : 0xd9;
    page.fill(0xcc);
    for (u32 call = 0; call < kPageSize / 32; ++call) {
      const u8 code[] = {0xb8, static_cast<u8>(call), 0, 0, 0, 0x0f, 0x01, last, 0xc3};
      memcpy(&page[call * 32], code, sizeof code);
    }
  } else {
    const bool long_mode = m_long_mode;
    const u64 pages = long_mode ? m_config.blob_size_64 : m_config.blob_size_32;
    const u64 first = long_mode ? m_config.blob_addr_64 : m_config.blob_addr_32;
    if (number >= pages || !copy_from_client(page.data(), first + number * kPageSize, kPageSize).ok())
      return false;
  }
  return x86::write_physical(cpu, address, page.data(), kPageSize);
}

// --- Events ---

// A bit for the port, and unless that is masked, a bit for its word in the CPU's vcpu_info, and the byte that
// asks for the upcall.
Domain::Sent Domain::send(u32 port, u32 vcpu_id) {
  Vcpu* target = m_vm.find_vcpu(vcpu_id);
  const Layout& form = layout();
  if (!target || port >= form.ports()) return Sent::kNowhere;
  const x86::PhysicalMemory& memory = m_vm.machine().memory();
  std::lock_guard lock(m_mutex);
  const auto before = m_shared_info.set_bit(memory, form.pending, port);
  const auto masked = m_shared_info.test_bit(memory, form.mask, port);
  if (!before || !masked) return Sent::kNowhere;
  target->xen().wake_poll(port);
  if (*before) return Sent::kAlreadyPending;
  if (*masked) return Sent::kMasked;
  return target->xen().raise(port / form.word_bits) ? Sent::kRaised : Sent::kNowhere;
}

bool Domain::any_pending(std::span<const u32> ports) {
  std::lock_guard lock(m_mutex);
  return std::ranges::any_of(ports, [&](u32 port) {
    return m_shared_info.test_bit(m_vm.machine().memory(), layout().pending, port).value_or(true);
  });
}

Result<> Domain::client_sends(const kvm_irq_routing_xen_evtchn& event) {
  if (!event.port || event.port >= layout().ports()) return Error{EINVAL, "no such port"};
  if (event.priority != kTwoLevel) return Error{EINVAL, "not a two-level event channel"};
  Sent sent = Sent::kNowhere;
  m_vm.with_memory([&] { sent = send(event.port, event.vcpu); });
  if (sent == Sent::kNowhere) return Error{ENOENT, "no such vCPU, or no shared info page"};
  return {};
}

bool Domain::guest_sends(u32 port) {
  u32 to_port = 0, to_vcpu = 0;
  {
    std::lock_guard lock(m_mutex);
    auto binding = m_bindings.find(port);
    if (binding == m_bindings.end()) return false;
    if (binding->second.event) return binding->second.event->signal(), true;
    to_port = binding->second.port;
    to_vcpu = binding->second.vcpu;
  }
  return send(to_port, to_vcpu) != Sent::kNowhere;
}

Result<> Domain::change_binding(const kvm_xen_hvm_attr& attribute) {
  const auto& request = attribute.u.evtchn;
  if (request.flags == KVM_XEN_EVTCHN_RESET) return m_bindings.clear(), Result<>{};
  if (!request.send_port || request.send_port >= layout().ports()) return Error{EINVAL, "no such port"};
  if (request.flags == KVM_XEN_EVTCHN_DEASSIGN) {
    if (m_bindings.erase(request.send_port) == 0) return Error{ENOENT, "the port goes nowhere"};
    return {};
  }
  if (request.flags == 0) return add_binding(attribute);
  if (request.flags != KVM_XEN_EVTCHN_UPDATE) return Error{EINVAL, "unknown flags"};
  auto known = m_bindings.find(request.send_port);
  if (known == m_bindings.end()) return Error{ENOENT, "the port goes nowhere"};
  // Only the vCPU may change.
  Binding& binding = known->second;
  const bool same = !binding.event && binding.type == request.type &&
                    binding.port == request.deliver.port.port && request.deliver.port.priority == kTwoLevel;
  if (!same) return Error{EINVAL, "another kind of destination"};
  binding.vcpu = request.deliver.port.vcpu;
  return {};
}

Result<> Domain::add_binding(const kvm_xen_hvm_attr& attribute) {
  const auto& request = attribute.u.evtchn;
  const bool loops_back = request.type == kIpi && request.deliver.port.port == request.send_port;
  if (!loops_back && request.type != kInterdomain) return Error{EINVAL, "not a kind of event that is sent"};
  Binding binding{request.type, request.deliver.port.port, request.deliver.port.vcpu, std::nullopt};
  if (!binding.port)
    binding.event = TRY(EventFd::open(request.deliver.eventfd.fd));
  else if (request.deliver.port.priority != kTwoLevel || binding.port >= layout().ports())
    return Error{EINVAL, "no such port"};
  if (!m_bindings.try_emplace(request.send_port, std::move(binding)).second)
    return Error{EEXIST, "the port goes somewhere"};
  return {};
}

}  // namespace anykvm::core::xen
