#pragma once
// Xen's interface as one vCPU has it (KVM_XEN_VCPU_SET_ATTR): its vcpu_info, time, run states, timer, polls
// and hypercalls. Owner: core::Vcpu. The vCPU's thread inside Cpu::run(), or whoever holds the vCPU's mutex
// while it does not run; functions marked so from any thread. "memory": see Domain.

#include <linux/kvm.h>

#include <array>
#include <atomic>
#include <mutex>
#include <optional>

#include "base/expected.h"
#include "core/single_waiter.h"
#include "core/xen/area.h"
#include "core/xen/interface.h"
#include "x86/cpu.h"

namespace anykvm::core {
class Vcpu;
}

namespace anykvm::core::xen {

class Domain;

class VirtualCpu {
 public:
  VirtualCpu(Vcpu& vcpu, Domain& domain) : m_vcpu(vcpu), m_domain(domain) {}

  Result<> set_attribute(const kvm_xen_vcpu_attr& attribute);  // memory
  Result<> get_attribute(kvm_xen_vcpu_attr& attribute);        // memory

  // --- Hypercalls (hypercalls.cpp) ---
  x86::Hypercall hypercall();
  void describe_call(kvm_xen_exit& exit) const;

  // --- Time ---
  bool has_time() const { return m_has_time.load(std::memory_order_relaxed); }
  void refresh_time();  // memory
  // CLOCK_MONOTONIC; kNever: none. Any thread.
  u64 deadline_ns() const;
  // Some of its deadlines have come. Memory.
  void expire();

  // --- Run states ---
  bool counts_runstates() const { return m_runstate_entry != 0 || m_runstate_area.active(); }
  void enter_runstate(Runstate state);  // memory

  // --- Events ---
  // The guest wants an interrupt with the domain's upcall vector. Memory.
  bool upcall_pending();
  bool may_have_upcall() const { return m_has_info.load(std::memory_order_relaxed); }  // any thread
  // Sets the bit for a word of pending ports, and asks for the upcall. False: there is no vcpu_info. Any
  // thread; memory; the domain's mutex is held.
  bool raise(unsigned word);
  // Ends a poll for this port. Any thread.
  void wake_poll(u32 port);
  // The vCPU does not wait any more, whatever it was that it waited for.
  void end_poll() {
    if (m_polled.exchange(kNoPoll) != kNoPoll) m_poll_deadline = kNever;
  }

 private:
  Result<> set_info(const kvm_xen_vcpu_attr& attribute);
  Result<> place(Area& area, u64 gpa, u32 size);
  Result<> set_runstate_data(const kvm_xen_vcpu_attr& attribute);
  Result<> adjust_runstate(const kvm_xen_vcpu_attr& attribute);
  void show_runstate();
  void store_time(const Area& area, u32 offset);
  u64 clock_ns() const;
  void start_timer(u64 expires_ns);
  void stop_timer();

  std::optional<i64> carry_out(u64 number, const std::array<u64, 6>& arguments, bool long_mode);
  std::optional<i64> send_event(u64 parameter);
  std::optional<i64> schedule(u64 command, u64 parameter, bool long_mode);
  i64 poll(u64 parameter, bool long_mode);
  std::optional<i64> vcpu_op(const std::array<u64, 6>& arguments, bool long_mode);
  std::optional<i64> set_timer(u64 timeout);
  std::array<u64, 6> arguments(bool long_mode) const;
  bool long_mode() const;

  static constexpr u32 kNoPoll = 0, kPollsSeveral = ~u32{0};

  Vcpu& m_vcpu;
  Domain& m_domain;
  std::mutex m_info_mutex;  // m_info is looked at by whoever sends; taken after the domain's
  Area m_info, m_time_area, m_runstate_area;
  std::atomic<bool> m_has_info{false}, m_has_time{false};
  std::atomic<u8> m_upcall_vector{0};  // of this vCPU's own, by its local APIC; 0: the domain's
  u32 m_id = 0;
  u32 m_timer_port = 0;
  u64 m_timer_expires = 0;                    // by the VM's clock; 0: not running
  std::atomic<u64> m_timer_deadline{kNever};  // the same by CLOCK_MONOTONIC
  std::atomic<u32> m_polled{kNoPoll};         // the port that a poll waits for
  std::atomic<u64> m_poll_deadline{kNever};
  Runstate m_runstate = kOffline;
  u64 m_runstate_entry = 0;
  u64 m_last_delay = 0;
  std::array<u64, kRunstates> m_runstate_times{};
};

}  // namespace anykvm::core::xen
