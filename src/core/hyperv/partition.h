#pragma once
// What all virtual processors of a VM share of Hyper-V's interface: the guest's identity, the hypercall page,
// the reference time and its page, crash and debugger registers, connections to eventfds, and the list of
// processors. Owner: Vm. Any thread; m_mutex is a leaf lock, held while guest memory is written.

#include <linux/kvm.h>

#include <array>
#include <atomic>
#include <map>
#include <mutex>
#include <optional>

#include "base/expected.h"
#include "core/eventfd.h"
#include "core/hyperv/tlfs.h"
#include "x86/cpu.h"

namespace anykvm::core::hyperv {

class VirtualProcessor;

// Virtual processors are numbered below this, and there are no more vCPUs.
inline constexpr u32 kMaxProcessors = 1024;

// The registers of Hyper-V's kernel debugger, whose other end is the client (KVM_EXIT_HYPERV_SYNDBG).
struct Debugger {
  u64 control = 0, status = 0, send_page = 0, receive_page = 0, pending_page = 0, options = 0;
};

class Partition {
 public:
  // --- MSRs that the VM has once. The guest's are written from inside Cpu::run(), the client's where guest
  // --- memory may be used (Cpu::visit_memory()).
  static bool owns_msr(u32 index);
  std::optional<u64> read_msr(x86::Cpu& cpu, u32 index);
  // False: #GP.
  bool write_msr(x86::Cpu& cpu, u32 index, u64 value, bool from_client);

  // Xen's hypercalls come by the same instruction: Hyper-V's page marks its own by bit 31 of EAX, as Xen's
  // does.
  void set_beside_xen(bool beside) { m_beside_xen = beside; }
  // The guest has said who it is, and may make hypercalls.
  bool hypercalls_enabled() const { return m_guest_os_id.load() != 0; }
  bool shows_invariant_tsc() const { return m_invariant_tsc_control.load() & 1; }

  // --- Time in units of 100 ns (TLFS 12.4) ---
  u64 reference_time(x86::Cpu& cpu);
  // KVM_SET_CLOCK: the page is wrong now.
  void clock_changed();
  bool tsc_page_stale() const { return m_tsc_page_stale.load(std::memory_order_acquire); }
  // Where guest memory may be used.
  void refresh_tsc_page(x86::Cpu& cpu);

  // --- The debugger ---
  Debugger debugger();
  void set_debugger_status(u64 status);

  // --- Connections (KVM_HYPERV_EVENTFD) ---
  Result<> change_event(const kvm_hyperv_eventfd& request);
  bool signal_event(u32 connection);

  // --- Processors ---
  // They are as many as vCPUs were made, and stay. Returns the number that it has until the client gives it
  // another.
  u32 add(VirtualProcessor& processor);
  VirtualProcessor* find(u32 vp_index) const;
  unsigned count() const { return m_count.load(std::memory_order_acquire); }
  VirtualProcessor& at(unsigned number) const {
    return *m_processors[number].load(std::memory_order_acquire);
  }

 private:
  enum class TscPage : u8 {
    kOff,
    kGuestChanged,   // the guest has switched it on: to be filled, whatever it holds
    kClientChanged,  // the client has, or has set the clock: to be filled, unless the guest relies on it
    kValid,
    kBroken  // not in memory, or no scale for this TSC: the guest reads sequence 0 and uses the MSR
  };

  bool write_hypercall_page(x86::Cpu& cpu, u64 value);  // m_mutex
  void set_tsc_page(u64 value, bool from_client);       // m_mutex
  void fill_tsc_page(x86::Cpu& cpu);                    // m_mutex
  bool store_tsc_page(x86::Cpu& cpu, Gpa address);      // m_mutex
  u64* plain_msr(u32 index);                            // m_mutex

  std::mutex m_mutex;
  std::atomic<u64> m_guest_os_id{0};
  std::atomic<u64> m_invariant_tsc_control{0};
  std::atomic<bool> m_beside_xen{false};
  u64 m_hypercall = 0;  // m_mutex, as all that follows
  u64 m_reference_tsc = 0;
  TscPage m_tsc_page = TscPage::kOff;
  std::atomic<bool> m_tsc_page_stale{false};
  ReferenceTscPage m_shown{};  // what the page holds, if kValid
  u64 m_reenlightenment = 0, m_tsc_emulation = 0, m_tsc_emulation_status = 0;
  u64 m_crash_control = 0;
  std::array<u64, 5> m_crash{};
  Debugger m_debugger;
  std::map<u32, EventFd> m_events;  // by connection

  std::array<std::atomic<VirtualProcessor*>, kMaxProcessors> m_processors{};
  std::atomic<unsigned> m_count{0};
};

}  // namespace anykvm::core::hyperv
