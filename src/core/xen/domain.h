#pragma once
// Xen's interface as a whole VM has it (KVM_XEN_HVM_CONFIG, KVM_XEN_HVM_SET_ATTR; KVM API 4.127, 5.x): the
// hypercall page, the shared info page, event channels and where the guest's own events go.
// Owner: Vm. m_mutex is a leaf lock. Functions marked "memory" are called where the layout of guest memory
// does not change: inside Cpu::run() or Cpu::visit_memory(), or with Vm's slot lock.

#include <linux/kvm.h>

#include <atomic>
#include <map>
#include <mutex>
#include <optional>
#include <span>

#include "base/expected.h"
#include "core/eventfd.h"
#include "core/xen/area.h"
#include "core/xen/interface.h"
#include "x86/cpu.h"

namespace anykvm::core {
class Vm;
class Vcpu;
}  // namespace anykvm::core

namespace anykvm::core::xen {

class Domain {
 public:
  explicit Domain(Vm& vm) : m_vm(vm) {}

  Result<> configure(const kvm_xen_hvm_config& config);
  bool takes_hypercalls() const { return m_flags.load() & KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL; }
  bool sends_events() const { return m_flags.load() & KVM_XEN_HVM_CONFIG_EVTCHN_SEND; }
  bool tsc_unstable() const { return m_flags.load() & kConfigTscUnstable; }

  Result<> set_attribute(const kvm_xen_hvm_attr& attribute);  // memory
  Result<> get_attribute(kvm_xen_hvm_attr& attribute);

  // WRMSR to the MSR that the client has chosen for the hypercall page. Nothing: it is another. Memory.
  std::optional<bool> write_msr(x86::Cpu& cpu, u32 index, u64 value);

  const Layout& layout() const { return m_long_mode.load() ? kLayout64 : kLayout32; }
  u8 upcall_vector() const { return m_upcall_vector.load(); }  // 0: none
  u32 version() const { return m_version.load(); }
  bool flags_runstate_updates() const { return m_runstate_update_flag.load(); }

  // What became of an event.
  enum class Sent : u8 { kRaised, kAlreadyPending, kMasked, kNowhere };
  // Memory.
  Sent send(u32 port, u32 vcpu_id);
  bool any_pending(std::span<const u32> ports);  // memory
  // KVM_XEN_HVM_EVTCHN_SEND, and routes of the interrupt chips. Not from inside Cpu::run().
  Result<> client_sends(const kvm_irq_routing_xen_evtchn& event);
  // The guest sends to its own port (EVTCHNOP_send). Nothing: the client knows the port. Memory.
  bool guest_sends(u32 port);

 private:
  // Where events go that the guest sends to a port (KVM_XEN_ATTR_TYPE_EVTCHN).
  struct Binding {
    u32 type, port, vcpu;
    std::optional<EventFd> event;
  };

  Result<> set_shared_info(const kvm_xen_hvm_attr& attribute);
  Result<> change_binding(const kvm_xen_hvm_attr& attribute);
  Result<> add_binding(const kvm_xen_hvm_attr& attribute);
  void write_wall_clock();  // m_mutex
  bool write_hypercall_page(x86::Cpu& cpu, u64 value);

  Vm& m_vm;
  std::mutex m_mutex;
  std::atomic<u32> m_flags{0};
  std::atomic<u32> m_msr{0};  // 0: none
  std::atomic<bool> m_long_mode{false};
  std::atomic<bool> m_runstate_update_flag{false};
  std::atomic<u8> m_upcall_vector{0};
  std::atomic<u32> m_version{0};
  kvm_xen_hvm_config m_config{};      // m_mutex
  Area m_shared_info;                 // m_mutex
  std::map<u32, Binding> m_bindings;  // m_mutex; by the guest's port
};

}  // namespace anykvm::core::xen
