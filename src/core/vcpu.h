#pragma once
// One virtual CPU: KVM_RUN, waiting and waking, and what its x86::Cpu and local APIC need from the machine.
// Owner: Vm. mutex() is held for every ioctl of the vCPU (the dispatcher takes it); functions under
// "any thread" need no lock.

#include <linux/kvm.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>

#include "base/expected.h"
#include "core/async_page_faults.h"
#include "core/dirty_ring.h"
#include "core/hyperv/processor.h"
#include "core/pv_eoi.h"
#include "core/region_access.h"
#include "core/run_signals.h"
#include "core/shared_page.h"
#include "core/single_waiter.h"
#include "core/stats.h"
#include "core/steal_time.h"
#include "core/timer_thread.h"
#include "core/xen/vcpu.h"
#include "irqchip/clock.h"
#include "irqchip/lapic.h"
#include "irqchip/lapic_host.h"
#include "x86/cpu.h"
#include "x86/platform.h"

namespace anykvm::core {

class Vm;

class Vcpu final : private x86::Platform,
                   private irqchip::LapicHost,
                   private irqchip::Clock,
                   private SignalListener {
 public:
  static Result<std::unique_ptr<Vcpu>> create(Vm& vm, u32 id);
  ~Vcpu() override;

  std::mutex& mutex() { return m_mutex; }
  Vm& vm() { return m_vm; }
  u32 id() const { return m_id; }
  SharedPage& shared_page() { return m_shared; }
  x86::Cpu& cpu() { return *m_cpu; }
  x86::CpuState& state() { return m_cpu->state(); }
  irqchip::Lapic* lapic() { return m_lapic.get(); }  // null: the client has the interrupt controller

  // KVM_RUN. Errors: EINTR (a signal or immediate_exit), EAGAIN (see KVM API 4.10), EINVAL.
  Result<> run();

  Result<> set_signal_mask(std::optional<SignalSet> mask);
  Result<> set_mp_state(u32 state);
  u32 mp_state() const;
  // Of the INIT and SIPI that came since the vCPU ran last; on its thread or while it does not run.
  void accept_init_and_sipi();
  u32 sipi_vector() const { return m_sipi_vector.load(); }
  void set_sipi_vector(u32 vector) { m_sipi_vector = static_cast<u8>(vector); }

  // KVM_INTERRUPT.
  Result<> inject_interrupt(u32 vector);
  // KVM_NMI. Any thread.
  void queue_nmi();
  // KVM_SMI. Any thread.
  void queue_smi() { smi(); }
  // An INIT that came in system-management mode waits for its end (SDM 3C 32.7).
  bool init_latched() const { return m_init_latched; }
  void set_init_latched(bool latched);

  // KVM_TPR_ACCESS_REPORTING: KVM_EXIT_TPR_ACCESS after accesses to the TPR in the local APIC's page.
  void set_tpr_access_reporting(bool enabled) { m_reports_tpr = enabled; }
  // KVM_SET_VAPIC_ADDR; 0: none. EFAULT: not in guest memory.
  Result<> set_vapic_address(u64 address);

  u8 task_priority();  // CR8
  Result<> set_task_priority(u64 cr8);
  u64 apic_base() const;
  Result<> set_apic_base(u64 value);

  u32 guest_tsc_khz() const { return m_tsc_khz.load(); }
  Result<> set_guest_tsc_khz(u32 khz);
  // KVM_VCPU_TSC_OFFSET: guest TSC = scaled host TSC + offset.
  u64 tsc_offset() { return state().tsc_offset; }
  void set_tsc_offset(u64 offset);

  DirtyRing& dirty_ring() { return m_dirty_ring; }
  bool has_dirty_ring() const { return m_dirty_ring.exists(); }
  hyperv::VirtualProcessor& hyperv() { return m_hyperv; }
  xen::VirtualCpu& xen() { return m_xen; }
  void xen_deadline_changed() { deadline_changed(); }
  // Any thread: there may be an interrupt; a halt ends whatever RFLAGS.IF says.
  void look_for_interrupts() { interrupt_posted(); }
  void end_halt() { unhalt(); }
  // Inside Cpu::run().
  void halt_after_instruction();
  // Hyper-V's timers were set up: they are run at once, or `later`, when guest memory may be used.
  void look_at_hyperv_timers(bool later);
  // #VMEXIT between two instructions, outside Cpu::run().
  void leave_nested_guest(u64 code, u64 info_1 = 0);

  // KVM_CAP_ENFORCE_PV_FEATURE_CPUID.
  void enforce_pv_features(bool enforce) { m_enforces_pv_features = enforce; }

  bool has_run() const { return m_has_run; }
  // KVM_GET_STATS_FD.
  Result<Fd> stats_descriptor();
  // KVM_SET_CPUID2, and its consequences outside the Cpu.
  Result<> set_cpuid(std::vector<x86::CpuidEntry> entries);

 private:
  enum Request : u8 {
    kRequestInit = 1,
    kRequestSipi = 2,
    kRequestClientEoi = 4,
    kRequestTprAccess = 8,
    kRequestHypervTimers = 16,
    kRequestXenTimers = 32,
    kRequestPagesArrived = 64,
  };

  Vcpu(Vm& vm, u32 id, SharedPage shared);
  bool change_apic_base(u64 value, bool from_client);
  Result<> join_irqchip();

  // --- run loop (vcpu_run.cpp) ---
  Result<> run_until_exit(RunSignals& signals);
  Result<> wait_as_uninitialized(RunSignals& signals);
  Result<> begin_run();
  void complete_client_io();
  // After complete_client_io(): carries out the instruction that waited for it, and nothing after it. True:
  // it needs the client once more.
  bool finish_instruction();
  // A client that has the PIC may inject an interrupt by KVM_INTERRUPT (ready_for_interrupt_injection).
  bool ready_for_client_interrupt();
  // True: the client wants to know of an access to the local APIC, and kvm_run describes it.
  bool report_apic_access();
  bool take_request(Request request);
  Error interrupted();
  Error left_at_once();
  bool take_signal() { return m_signalled.load() && m_signalled.exchange(false); }
  x86::Exit run_guest();
  void handle_apic_requests();
  void start_at_sipi_vector(u8 vector);
  bool blocks_init();
  bool hypervisor_takes_init(u8 requests);
  void save_run_state();
  // True: the exit is for the client, and kvm_run describes it.
  bool handle_exit(const x86::Exit& exit);
  // --- accesses that an ioregionfd server answers (region_access.cpp) ---
  // True: the exit is for a server, and is m_region_access from here on.
  bool begin_region_access(const x86::Exit& exit);
  // True: the server failed, so the exit is for the client. EINTR: a signal came; the next run goes on with
  // it.
  Result<bool> finish_region_access(RunSignals& signals);
  IoChannel::Outcome wait_for_server(RunSignals& signals);

  void report_pio(const x86::Exit& exit);
  void report_mmio(const x86::Exit& exit);
  void report_msr(const x86::Exit& exit);
  Error report_private_access(u64 gpa);
  Error report_missing_memory();
  void report_memory_fault(Gpa address, u64 flags);
  void finish_out_to_vapic();
  void report_debug(const x86::Exit& exit);
  void report_internal_error(const x86::Exit& exit);
  void tell_instruction();
  void report_hypercall(const x86::Exit& exit);
  void expire_timers();
  u64 next_deadline_ns() const;
  // Has the timer thread watch the next deadline while the vCPU is in guest code.
  void arm_timer();

  // --- what KVM tells its guests about time and waiting ---
  void show_running();  // before guest code runs
  void show_stopped();  // when it does not any more

  // The guest hears of a page that it waited for; inside Cpu::run() or Cpu::visit_memory().
  void tell_of_pages();
  // The local APIC may be on now, and was not before.
  void note_apic_enabled(bool was_enabled);

  // --- hypercalls (hypercalls.cpp) ---
  x86::Hypercall kvm_hypercall(u32* client_call);
  std::optional<i64> kvm_call(u64 number, const std::array<u64, 4>& arguments, u32* client_call);
  i64 pair_clocks(Gpa to, u64 clock);
  i64 send_ipis(const std::array<u64, 4>& arguments, bool wide);
  bool pv_permitted(x86::Feature feature);
  void set_result(u64 value);  // RAX, as wide as the code

  // --- the guest's own copy of TPR, ISR and IRR (vapic.cpp) ---
  void note_tpr_access(Gpa address, bool write);  // inside Cpu::run()
  void take_vapic_tpr();                          // inside Cpu::run()
  void show_vapic();                              // inside Cpu::run()

  bool in_lapic_hole(Gpa address) const;

  // --- MSR_KVM_PV_EOI_EN; inside Cpu::run() or Cpu::visit_memory() ---
  void offer_pv_eoi(u8 vector);
  void settle_pv_eoi();

  // --- waiting and waking (vcpu_wait.cpp) ---
  // Sleeps until the vCPU can go on, or a signal. Spins a little first.
  void wait(RunSignals& signals);
  bool wake_condition();
  bool runnable_after_halt();
  bool spin_until(u64 end);
  bool xen_upcall_pending();

  // --- x86::Platform: this vCPU's thread, inside Cpu::run() ---
  bool pio_read(u16 port, void* data, unsigned size) override;
  bool pio_write(u16 port, const void* data, unsigned size) override;
  bool mmio_read(Gpa address, void* data, unsigned size) override;
  bool mmio_write(Gpa address, const void* data, unsigned size) override;
  bool interrupt_ready() override;
  std::optional<u8> acknowledge_interrupt() override;
  bool takes_client_interrupt() override;
  bool init_waits() override { return m_init_latched; }
  u8 cr8() override { return task_priority(); }
  void set_cr8(u8 value) override;
  bool apic_msr_read(u32 index, u64* value) override;
  bool apic_msr_write(u32 index, u64 value) override;
  u32 apic_id() override { return m_id; }
  u64 kvmclock_ns(u64 tsc) override;
  u32 tsc_khz() override { return guest_tsc_khz(); }
  bool msr_filtered(u32 index, bool write) override;
  bool msr_exit_wanted(u32 reason) override;
  bool platform_info_readable() override;
  bool fixes_hypercalls() override;
  x86::Hypercall hypercall(u32* client_call) override;
  void hypercall_answered(u32 client_call, u64 answer) override;
  void nested_guest_enters(const x86::VmcbControl& control) override {
    m_hyperv.nested_guest_enters(control);
  }
  x86::MsrMapUse msr_map_use(const x86::VmcbControl& control) override {
    return m_hyperv.msr_map_use(control);
  }
  std::optional<x86::Hypercall> nested_hypercall() override { return m_hyperv.nested_hypercall(); }
  bool enforces_pv_features() override { return m_enforces_pv_features; }
  std::optional<u64> hyperv_msr_read(u32 index, bool from_client) override {
    return m_hyperv.read_msr(index, from_client);
  }
  bool hyperv_msr_write(u32 index, u64 value, bool from_client) override {
    return m_hyperv.write_msr(index, value, from_client);
  }
  std::optional<bool> chosen_msr_write(u32 index, u64 value) override;
  bool has_counters() override;
  bool counts_event(u64 select) override;
  bool counts_fixed(unsigned index) override;
  void performance_interrupt() override;
  void look_at_counters_at(u64 tsc) override;
  bool async_page_fault_msr_write(u32 index, u64 value) override;
  std::optional<u32> await_page(const u8* host) override;
  bool hides_invariant_tsc() override { return m_hyperv.hides_invariant_tsc(); }
  u64 client_tsc_offset(u64 value, u64 offset) override;

  // --- irqchip::LapicHost: any thread, must not block ---
  void interrupt_posted() override;
  void nmi() override;
  void smi() override;
  void unhalt() override;
  void init() override;
  void sipi(u8 vector) override;
  void client_ioapic_eoi(u8 vector) override;
  void deadline_changed() override;
  bool opens_lint0() override;
  void interrupt_ended(u8 vector) override { m_hyperv.end_of_interrupt(vector); }

  // --- irqchip::Clock: any thread ---
  u64 now_ns() override { return monotonic_ns(); }
  u64 guest_tsc() override { return m_cpu->read_tsc(); }
  u64 guest_tsc_to_ns(u64 tsc) override;

  // --- SignalListener: a signal handler's end ---
  void signal_arrived() override;

  void request(u8 request);

  Vm& m_vm;  // owns this
  const u32 m_id;
  std::mutex m_mutex;
  SharedPage m_shared;
  DirtyRing m_dirty_ring;
  std::unique_ptr<x86::Cpu> m_cpu;
  std::unique_ptr<irqchip::Lapic> m_lapic;
  std::optional<SignalSet> m_signal_mask;
  u8 m_client_cr8 = 0;  // without a local APIC: CR8 and IA32_APIC_BASE live here
  u64 m_client_apic_base = 0;
  irqchip::Lapic::Features m_apic_features;  // what CPUID shows
  std::optional<Gpa> m_vapic;
  bool m_reports_tpr = false;
  bool m_tpr_write = false;  // of kRequestTprAccess
  u64 m_tpr_rip = 0;
  std::atomic<u32> m_tsc_khz;
  x86::Exit m_io_exit;                          // what the client is answering
  std::optional<RegionAccess> m_region_access;  // what a server is answering; another run may have begun it
  Fd m_server_wake;                             // an eventfd that calls us away from waiting for one
  std::atomic<bool> m_waits_for_server{false};
  bool m_has_run = false;
  Stats m_stats{Stats::Kind::kVcpu};
  bool m_enforces_pv_features = false;
  StealTime m_steal_time;
  PvEoi m_pv_eoi;  // offered: only inside Cpu::run()
  hyperv::VirtualProcessor m_hyperv;
  xen::VirtualCpu m_xen;
  u32 m_clock_generation = 0;  // of the time that the guest was shown last

  SingleWaiter m_waiter;
  std::atomic<u8> m_requests{0};  // bits of Request
  std::atomic<u8> m_sipi_vector{0};
  bool m_init_latched = false;
  u8 m_client_eoi = 0;                  // of kRequestClientEoi
  std::atomic<bool> m_unhalted{false};  // a kick that ends the next halt whatever RFLAGS.IF says
  std::atomic<bool> m_signalled{false};
  std::atomic<bool> m_in_guest{false};  // inside Cpu::run(): deadlines are the timer thread's
  TimerThread::Timer* m_timer = nullptr;
  TimerThread::Timer* m_counter_timer = nullptr;  // once a performance counter needed it
  u64 m_spin_ns;
  AsyncPageFaults m_async_page_faults;  // calls back until it is gone, so it goes first
};

}  // namespace anykvm::core
