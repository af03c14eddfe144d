#pragma once
// One virtual machine: memory slots, interrupt chips, eventfds, clock, and the list of its vCPUs.
// Owner: shared by the VM's descriptor and its vCPUs' descriptors; it owns the vCPUs. Every function from any
// thread.
//
// Locks: m_mutex guards creation of chips and vCPUs, m_slots_mutex the slot table. Both are held while the
// world is stopped, so no callback of a running vCPU (x86::Platform) takes them; those see only the leaf
// locks of the parts.

#include <linux/kvm.h>

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "base/expected.h"
#include "core/coalesced_io.h"
#include "core/counter_filter.h"
#include "core/guest_memory.h"
#include "core/hyperv/partition.h"
#include "core/io_events.h"
#include "core/io_regions.h"
#include "core/irq_fds.h"
#include "core/kvm_clock.h"
#include "core/memory_slots.h"
#include "core/msr_filter.h"
#include "core/page_fetcher.h"
#include "core/stats.h"
#include "core/timer_thread.h"
#include "core/tsc_sync.h"
#include "core/xen/domain.h"
#include "irqchip/clock.h"
#include "irqchip/irqchip.h"
#include "x86/machine.h"

namespace anykvm::core {

class Vcpu;

inline constexpr u32 kMaxVcpus = 1024;
// vCPU numbers are below this.
inline constexpr u32 kMaxVcpuIds = 4 * kMaxVcpus;

// What holds the private pages of a slot: `memory` from `offset` on.
struct GuestBacking {
  std::shared_ptr<GuestMemory> memory;
  u64 offset = 0;
};

class Vm final : public std::enable_shared_from_this<Vm> {
 public:
  // `type` is KVM_CREATE_VM's argument, KVM_X86_*_VM; EINVAL for others. EACCES, EPERM: generated code may
  // not be executed here.
  static Result<std::shared_ptr<Vm>> create(u64 type);
  ~Vm();
  Vm(const Vm&) = delete;
  Vm& operator=(const Vm&) = delete;

  // --- vCPUs ---
  // The pointer keeps the whole VM alive.
  Result<std::shared_ptr<Vcpu>> create_vcpu(u64 id);
  Result<> set_boot_cpu(u64 id);
  u32 boot_cpu() const { return m_boot_cpu.load(); }
  // KVM_CAP_MAX_VCPU_ID: numbers of vCPUs will be below `limit`. It can be set once.
  Result<> set_max_vcpu_ids(u64 limit);
  bool has_vcpus() const;
  // Null: there is none with this number.
  Vcpu* find_vcpu(u32 id) const {
    return id < kMaxVcpuIds ? m_vcpus_by_id[id].load(std::memory_order_acquire) : nullptr;
  }

  // --- memory ---
  // With a backing, private pages of a new slot use that memory.
  Result<> set_user_memory_region(const kvm_userspace_memory_region& region,
                                  const GuestBacking& backing = {});
  // KVM_X86_SW_PROTECTED_VM: pages can be private.
  bool has_private_memory() const { return m_type == KVM_X86_SW_PROTECTED_VM; }
  // KVM_SET_MEMORY_ATTRIBUTES. ENOMEM.
  Result<> set_private(u64 first, u64 end, bool is_private);
  bool is_private(Gpa address);
  // --- dirty pages (vm_dirty.cpp) ---
  // Copies the slot's dirty bitmap to the client and, unless the client wants to do that itself, clears it;
  // later writes are seen again.
  Result<> get_dirty_log(u32 slot, u64 client_bitmap);
  Result<> clear_dirty_log(const kvm_clear_dirty_log& request);
  // KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: KVM_DIRTY_LOG_*.
  Result<> set_manual_dirty_log(u64 flags);
  // KVM_CAP_DIRTY_LOG_RING, before there are vCPUs.
  Result<> set_dirty_ring_bytes(u64 bytes);
  u64 dirty_ring_bytes() const { return m_dirty_ring_bytes.load(); }
  // KVM_RESET_DIRTY_RINGS: how many entries it were.
  Result<long> reset_dirty_rings();

  // While `work` runs, guest memory stays where it is. Not from inside Cpu::run().
  template <class Work>
  void with_memory(Work work) {
    std::lock_guard lock(m_slots_mutex);
    work();
  }
  // All in one slot. Not from inside Cpu::run().
  bool is_guest_memory(Gpa address, u64 size);
  x86::Machine& machine() { return *m_machine; }
  u64 mmu_pages() const { return m_mmu_pages.load(); }
  void set_mmu_pages(u64 pages) { m_mmu_pages = pages; }

  // --- interrupts ---
  Result<> create_irqchip();
  // KVM_CAP_SPLIT_IRQCHIP: local APICs only; GSIs below `reserved_pins` are the pins of the client's IOAPIC.
  Result<> create_split_irqchip(u64 reserved_pins);
  Result<> create_pit(u32 flags);
  // KVM_CAP_X2APIC_API: flags once set stay set.
  void enable_x2apic_api(u64 flags);
  irqchip::IrqChip* irqchip() const {
    return m_irqchip.load(std::memory_order_acquire);
  }  // null: the client has it
  Result<irqchip::IrqChip*> require_irqchip(int error) const;
  Result<irqchip::Pit*> require_pit() const;
  // The PIC and the IOAPIC are in here, so the client has no interrupts of its own to inject.
  bool has_pic() const { return irqchip() && irqchip()->kind() == irqchip::IrqChip::Kind::kFull; }
  Result<> irqfd(const kvm_irqfd& request);

  // --- buses: the guest's accesses that are no vCPU's own ---
  IoEvents& io_events() { return m_io_events; }
  IoRegions& io_regions() { return m_io_regions; }
  CoalescedIo& coalesced_io() { return m_coalesced_io; }

  // --- time ---
  KvmClock& clock() { return m_clock; }
  // KVM_SET_CLOCK. Running vCPUs show their guests the new time before they go on.
  Result<> set_clock(const kvm_clock_data& data);
  TimerThread& timers() { return m_timers; }
  // What new vCPUs start with.
  u32 default_tsc_khz() const { return m_default_tsc_khz.load(); }
  Result<> set_default_tsc_khz(u32 khz);
  u64 creation_tsc() const { return m_creation_tsc; }
  TscSync& tsc_sync() { return m_tsc_sync; }
  PageFetcher& page_fetcher() { return m_page_fetcher; }

  hyperv::Partition& hyperv() { return m_hyperv; }
  xen::Domain& xen() { return m_xen; }

  // --- settings of KVM_ENABLE_CAP ---
  // EINVAL once there are vCPUs or where the APIC's timer would overflow, ENXIO without local APICs.
  Result<> set_apic_bus_cycle_ns(u64 ns);
  u64 apic_bus_cycle_ns() const { return m_apic_bus_cycle_ns.load(); }
  void set_platform_info_readable(bool readable) { m_platform_info_readable = readable; }
  bool platform_info_readable() const { return m_platform_info_readable.load(); }
  // Where the guest finds what the host has at `host`; the first such place.
  std::optional<Gpa> guest_address(const u8* host);
  // KVM_CAP_DISABLE_QUIRKS2: bits of KVM_X86_QUIRK_*.
  void disable_quirks(u64 quirks) { m_disabled_quirks |= quirks; }
  u64 disabled_quirks() const { return m_disabled_quirks.load(std::memory_order_relaxed); }
  bool has_quirk(u64 quirk) const { return !(disabled_quirks() & quirk); }
  // KVM_CAP_HALT_POLL: how long a vCPU may wait for a wake-up without sleeping.
  void set_halt_poll_ns(u64 ns) { m_halt_poll_ns = ns; }
  u64 halt_poll_ns() const { return m_halt_poll_ns.load(std::memory_order_relaxed); }
  // KVM_CAP_X86_USER_SPACE_MSR: bits of KVM_MSR_EXIT_REASON_*.
  void set_msr_exits(u32 reasons) { m_msr_exits = reasons; }
  u32 msr_exits() const { return m_msr_exits.load(std::memory_order_relaxed); }
  MsrFilter& msr_filter() { return m_msr_filter; }
  // KVM_CAP_PMU_CAPABILITY. EINVAL once there are vCPUs.
  Result<> set_performance_counters(bool wanted);
  bool has_performance_counters() const { return m_performance_counters.load(); }
  // KVM_SET_PMU_EVENT_FILTER.
  const CounterFilter& counter_filter() const { return m_counter_filter; }
  void set_counter_filter(CounterFilter::Rules rules);
  // KVM_CAP_X86_DISABLE_EXITS: bits of KVM_X86_DISABLE_EXITS_*, which stay set.
  void disable_exits(u64 exits) { m_disabled_exits |= exits; }
  bool halts_without_exit() const {
    return m_disabled_exits.load(std::memory_order_relaxed) & KVM_X86_DISABLE_EXITS_HLT;
  }
  // KVM_CAP_EXIT_ON_EMULATION_FAILURE.
  void tell_failed_instructions(bool tell) { m_tells_failed_instructions = tell; }
  bool tells_failed_instructions() const {
    return m_tells_failed_instructions.load(std::memory_order_relaxed);
  }
  // KVM_CAP_EXCEPTION_PAYLOAD and KVM_CAP_X86_TRIPLE_FAULT_EVENT: more of struct kvm_vcpu_events.
  void show_exception_payloads(bool show) { m_shows_exception_payloads = show; }
  bool shows_exception_payloads() const { return m_shows_exception_payloads.load(); }
  void show_triple_faults(bool show) { m_shows_triple_faults = show; }
  bool shows_triple_faults() const { return m_shows_triple_faults.load(); }
  // KVM_CAP_EXIT_HYPERCALL: bit n for KVM_HC_* n, which the client answers.
  void set_client_hypercalls(u64 calls) { m_client_hypercalls = calls; }
  bool client_answers_hypercall(u64 number) const {
    return number < 64 && (m_client_hypercalls.load(std::memory_order_relaxed) >> number & 1);
  }

  // Populates guest memory from `gpa` on, at most `size` bytes; returns how many bytes it was. ENOENT: no
  // slot at `gpa`.
  Result<u64> pre_fault(u64 gpa, u64 size);

  // KVM_GET_STATS_FD.
  Result<Fd> stats_descriptor();

  // True in the process that made the VM; a forked child has a copy that nothing drives (the kernel says
  // EIO).
  bool belongs_to_this_process() const;

 private:
  // Time for the PIT, which does not ask for a TSC.
  struct PitClock final : irqchip::Clock {
    u64 now_ns() override;
    u64 guest_tsc() override { return 0; }
    u64 guest_tsc_to_ns(u64) override { return irqchip::kNever; }
  };

  Vm(std::unique_ptr<x86::Machine> machine, u64 type);
  // The parts of slots whose attributes differ, each with memory and a dirty log of its own.
  struct CutLog {
    u32 slot;
    u64 first_page;
    std::shared_ptr<std::vector<std::atomic<u64>>> bitmap;
  };
  Result<> check_backing(const kvm_userspace_memory_region& region, const GuestBacking& backing) const;
  // What the machine knows of a slot.
  struct Published {
    std::vector<Gpa> parts;  // where each begins
    std::vector<CutLog> logs;
  };
  Result<> publish(std::span<const u32> ids);  // m_slots_mutex
  Result<> cut(const x86::MemorySlot& slot, std::vector<x86::MemorySlot>& layout,
               std::vector<CutLog>& logs) const;                    // m_slots_mutex
  void collect(const std::vector<CutLog>& logs);                    // m_slots_mutex
  Result<const x86::MemorySlot*> logged_slot(u32 slot_id) const;    // m_slots_mutex
  void apply_x2apic_api();                                          // m_mutex
  void install_irqchip(std::unique_ptr<irqchip::IrqChip> irqchip);  // m_mutex
  void pit_expired();
  void rearm_pit();

  const u64 m_creation_tsc;
  const unsigned m_fork_generation;
  std::atomic<u32> m_default_tsc_khz;
  std::atomic<u32> m_boot_cpu{0};
  std::atomic<u64> m_mmu_pages{0};
  std::atomic<u64> m_apic_bus_cycle_ns{1};
  std::atomic<bool> m_platform_info_readable{true};
  std::atomic<u32> m_msr_exits{0};
  std::atomic<u64> m_disabled_quirks{0};
  std::atomic<u64> m_halt_poll_ns{~u64{0}};  // as long as vCPUs like
  std::atomic<u64> m_disabled_exits{0};
  std::atomic<u64> m_client_hypercalls{0};
  std::atomic<bool> m_tells_failed_instructions{false};
  std::atomic<bool> m_shows_exception_payloads{false}, m_shows_triple_faults{false};
  MsrFilter m_msr_filter;
  CounterFilter m_counter_filter;
  std::atomic<bool> m_performance_counters{true};
  PageFetcher m_page_fetcher;
  KvmClock m_clock;
  TscSync m_tsc_sync;
  hyperv::Partition m_hyperv;
  xen::Domain m_xen{*this};
  PitClock m_pit_clock;
  IoEvents m_io_events;
  IoRegions m_io_regions;
  CoalescedIo m_coalesced_io;
  const std::unique_ptr<x86::Machine> m_machine;

  std::mutex m_slots_mutex;
  MemorySlots m_slots;  // m_slots_mutex
  const u64 m_type;
  PrivateRanges m_private;                 // m_slots_mutex
  std::map<u32, GuestBacking> m_backings;  // m_slots_mutex; by slot
  std::map<u32, Published> m_published;    // m_slots_mutex; by slot
  std::atomic<u64> m_dirty_ring_bytes{0};  // 0: no rings
  bool m_manual_dirty_log = false;         // m_slots_mutex
  std::atomic<bool> m_any_private{false};  // !m_private.empty(), for whoever has no lock
  Stats m_stats{Stats::Kind::kVm};         // m_slots_mutex

  // The order matters for destruction: irqfd thread, vCPUs, timer thread, chips.
  mutable std::mutex m_mutex;
  std::unique_ptr<irqchip::IrqChip> m_irqchip_storage;  // m_mutex; set once
  std::atomic<irqchip::IrqChip*> m_irqchip{nullptr};
  u64 m_x2apic_api = 0;    // m_mutex
  u32 m_max_vcpu_ids = 0;  // m_mutex; 0: kMaxVcpuIds
  TimerThread m_timers;
  TimerThread::Timer* m_pit_timer = nullptr;
  std::map<u32, std::unique_ptr<Vcpu>> m_vcpus;  // m_mutex
  std::array<std::atomic<Vcpu*>, kMaxVcpuIds> m_vcpus_by_id{};
  std::unique_ptr<IrqFds> m_irq_fds;  // m_mutex; set once, with the chip
};

}  // namespace anykvm::core
