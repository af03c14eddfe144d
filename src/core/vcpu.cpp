#include "core/vcpu.h"

#include <errno.h>
#include <fmt/format.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>

#include "base/trace.h"
#include "core/host_tsc.h"
#include "core/vm.h"
#include "irqchip/apic_registers.h"
#include "x86/sys/kvmclock.h"
#include "x86/sys/pmu.h"

namespace anykvm::core {
namespace {

constexpr u64 kRatioOne = u64{1} << 32;

u64 scaled(u64 host_tsc, u64 ratio) {
  return static_cast<u64>((static_cast<unsigned __int128>(host_tsc) * ratio) >> 32);
}

// A CPU whose HLT does not exit does not wait for a kick in it (KVM API 7.13).
void hide_pv_unhalt(std::vector<x86::CpuidEntry>& entries) {
  x86::CpuModel model;
  model.set_entries(entries);
  if (const x86::CpuidEntry* features = model.find_pv_features()) {
    constexpr u32 kPvUnhalt = 1u << 7;
    entries[static_cast<std::size_t>(features - model.entries().data())].eax &= ~kPvUnhalt;
  }
}

u64 tsc_ratio(u32 guest_khz) {
  return guest_khz == host_tsc_khz() ? kRatioOne : scale(kRatioOne, guest_khz, host_tsc_khz());
}

}  // namespace

Vcpu::Vcpu(Vm& vm, u32 id, SharedPage shared)
    : m_vm(vm),
      m_id(id),
      m_shared(std::move(shared)),
      m_dirty_ring(m_shared.dirty_ring(), static_cast<u32>(vm.dirty_ring_bytes() / sizeof(kvm_dirty_gfn))),
      m_tsc_khz(vm.default_tsc_khz()),
      m_hyperv(*this, vm.hyperv()),
      m_xen(*this, vm.xen()),
      m_spin_ns(0),
      m_async_page_faults(id, [this] { request(kRequestPagesArrived); }) {
  m_cpu = std::make_unique<x86::Cpu>(vm.machine(), static_cast<x86::Platform&>(*this));
  m_dirty_ring.set_cpu(m_cpu.get());
  m_cpu->reset(false);
  x86::CpuState& cpu_state = state();
  cpu_state.tsc_ratio = tsc_ratio(m_tsc_khz);
  // All vCPUs count from the VM's creation or from what the client wrote since, so their TSCs agree however
  // late one is made.
  cpu_state.tsc_offset = vm.tsc_sync().join(0 - scaled(vm.creation_tsc(), cpu_state.tsc_ratio), m_tsc_khz);
  const bool boot = id == vm.boot_cpu();
  m_client_apic_base =
      irqchip::kApicBaseDefault | irqchip::kApicBaseEnable | (boot ? irqchip::kApicBaseBsp : 0);
  cpu_state.mp_state = boot || !vm.irqchip() ? x86::MpState::kRunnable : x86::MpState::kUninitialized;
  m_cpu->state_replaced();
}

Vcpu::~Vcpu() {
  if (m_timer) m_vm.timers().remove(m_timer);
  if (m_counter_timer) m_vm.timers().remove(m_counter_timer);
  if (m_lapic) m_vm.irqchip()->remove_lapic(*m_lapic);
}

Result<std::unique_ptr<Vcpu>> Vcpu::create(Vm& vm, u32 id) {
  std::unique_ptr<Vcpu> vcpu(new Vcpu(vm, id, TRY(SharedPage::create(id, vm.dirty_ring_bytes()))));
  if (vm.irqchip()) TRY(vcpu->join_irqchip());
  vcpu->m_hyperv.join();
  return vcpu;
}

Result<> Vcpu::join_irqchip() {
  irqchip::Clock& clock = *this;
  irqchip::LapicHost& host = *this;
  auto lapic =
      std::make_unique<irqchip::Lapic>(m_vm.irqchip()->bus(), clock, host, m_id, m_id == m_vm.boot_cpu());
  if (!m_vm.irqchip()->add_lapic(*lapic)) return Error{EINVAL, "too many local APICs"};
  lapic->set_bus_cycle(m_vm.apic_bus_cycle_ns());
  m_lapic = std::move(lapic);
  m_timer = m_vm.timers().add([this] {
    expire_timers();
    if (m_in_guest.load()) arm_timer();
  });
  return {};
}

// --- State that the client reads and writes ---

Result<> Vcpu::set_signal_mask(std::optional<SignalSet> mask) {
  if (mask) *mask &= ~(signal_bit(SIGKILL) | signal_bit(SIGSTOP));
  m_signal_mask = mask;
  return {};
}

Result<> Vcpu::set_mp_state(u32 mp) {
  if (!m_lapic && mp != KVM_MP_STATE_RUNNABLE)
    return Error{EINVAL, "without a local APIC a vCPU is always runnable"};
  // In system-management mode INIT and SIPI have to wait (KVM_SET_VCPU_EVENTS: latched_init).
  const bool starts = mp == KVM_MP_STATE_INIT_RECEIVED || mp == KVM_MP_STATE_SIPI_RECEIVED;
  if (starts && (state().smm.active || m_cpu->smi_waits()))
    return Error{EINVAL, "no INIT and SIPI in system-management mode"};
  switch (mp) {
    case KVM_MP_STATE_SIPI_RECEIVED:
      state().mp_state = x86::MpState::kInitReceived;
      request(kRequestSipi);
      return {};
    case KVM_MP_STATE_RUNNABLE:
    case KVM_MP_STATE_UNINITIALIZED:
    case KVM_MP_STATE_INIT_RECEIVED:
    case KVM_MP_STATE_HALTED:
      state().mp_state = static_cast<x86::MpState>(mp);
      return {};
    default:
      return Error{EINVAL, "unknown multiprocessing state"};
  }
}

// A halt that does not exit shows to nobody.
u32 Vcpu::mp_state() const {
  const x86::MpState mp = m_cpu->state().mp_state;
  if (mp == x86::MpState::kHalted && (!m_lapic || m_unhalted.load())) return KVM_MP_STATE_RUNNABLE;
  return static_cast<u32>(mp);
}

Result<> Vcpu::inject_interrupt(u32 vector) {
  if (vector > 255) return Error{EINVAL, "vector is above 255"};
  if (m_vm.has_pic()) return Error{ENXIO, "the interrupt controller is inside"};
  if (!m_lapic) {
    m_cpu->inject_interrupt(static_cast<u8>(vector));
  } else if (!m_lapic->offer_client_vector(static_cast<u8>(vector))) {
    return Error{EEXIST, "the last one still waits"};
  }
  return {};
}

void Vcpu::queue_nmi() { nmi(); }

u8 Vcpu::task_priority() { return m_lapic ? m_lapic->cr8() : m_client_cr8; }

Result<> Vcpu::set_task_priority(u64 value) {
  if (value > 15) return Error{EINVAL, "CR8 is above 15"};
  if (m_lapic) m_lapic->set_cr8(static_cast<u8>(value));
  m_client_cr8 = static_cast<u8>(value);
  return {};
}

u64 Vcpu::apic_base() const { return m_lapic ? m_lapic->apic_base() : m_client_apic_base; }

Result<> Vcpu::set_apic_base(u64 value) {
  if (!change_apic_base(value, true)) return Error{EINVAL, "APIC base that no APIC can have"};
  return {};
}

bool Vcpu::change_apic_base(u64 value, bool from_client) {
  if (m_lapic) return m_lapic->set_apic_base(value, from_client);
  if (!irqchip::Lapic::can_change_apic_base(m_client_apic_base, value, m_apic_features, from_client))
    return false;
  m_client_apic_base = value;
  return true;
}

Result<> Vcpu::set_guest_tsc_khz(u32 khz) {
  if (khz >= kTscKhzEnd) return Error{EINVAL, "TSC rate is too large"};
  const u32 rate = khz ? khz : host_tsc_khz();
  x86::CpuState& cpu_state = state();
  const u64 now = host_tsc();
  const u64 guest_now = scaled(now, cpu_state.tsc_ratio) + cpu_state.tsc_offset;
  cpu_state.tsc_ratio = tsc_ratio(rate);
  cpu_state.tsc_offset = guest_now - scaled(now, cpu_state.tsc_ratio);
  m_tsc_khz = rate;
  m_cpu->state_replaced();
  if (m_lapic) m_lapic->tsc_changed();
  return {};
}

Result<> Vcpu::set_cpuid(std::vector<x86::CpuidEntry> entries) {
  irqchip::Lapic::Features& features = m_apic_features;
  features.x2apic = features.tsc_deadline = false;
  for (const x86::CpuidEntry& entry : entries) {
    if (entry.function != 1) continue;
    features.x2apic = entry.ecx & (1u << 21);
    features.tsc_deadline = entry.ecx & (1u << 24);
  }
  if (m_vm.halts_without_exit()) hide_pv_unhalt(entries);
  m_hyperv.set_cpuid(entries);
  m_cpu->model().set_entries(std::move(entries));
  features.physical_bits = static_cast<u8>(m_cpu->model().physical_address_bits());
  features.suppress_eoi_broadcast = features.x2apic && !m_vm.has_pic();
  if (m_lapic) m_lapic->set_features(features);
  m_cpu->pmu().refresh();
  m_cpu->state_replaced();
  return {};
}

Result<Fd> Vcpu::stats_descriptor() {
  return m_stats.descriptor(fmt::format("kvm-{}/vcpu-{}", getpid(), m_id));
}

// --- x86::Platform ---

bool Vcpu::pio_read(u16 port, void* data, unsigned size) {
  auto* chip = m_vm.irqchip();
  return chip && chip->pio_read(port, data, size);
}

bool Vcpu::pio_write(u16 port, const void* data, unsigned size) {
  auto* chip = m_vm.irqchip();
  if (chip && chip->pio_write(port, data, size)) return true;
  return m_vm.io_events().write(IoBus::kPio, port, data, size) ||
         m_vm.coalesced_io().write(IoBus::kPio, port, data, size);
}

// Where the local APIC's page would be, but the APIC is off or in x2APIC mode.
bool Vcpu::in_lapic_hole(Gpa address) const {
  const bool has_page = m_lapic->hardware_enabled() && !m_lapic->x2apic_mode();
  return m_lapic->owns_address(address) && !has_page && !m_vm.has_quirk(KVM_X86_QUIRK_LAPIC_MMIO_HOLE);
}

bool Vcpu::mmio_read(Gpa address, void* data, unsigned size) {
  if (!m_lapic || in_lapic_hole(address)) return false;
  take_vapic_tpr();
  if (m_pv_eoi.offered() && m_lapic->owns_address(address)) settle_pv_eoi();
  if (!m_vm.irqchip()->mmio_read(*m_lapic, address, data, size)) return false;
  if (m_reports_tpr) note_tpr_access(address, false);
  return true;
}

bool Vcpu::mmio_write(Gpa address, const void* data, unsigned size) {
  take_vapic_tpr();
  if (m_pv_eoi.offered() && m_lapic->owns_address(address)) settle_pv_eoi();
  const bool apic_was_enabled = m_lapic && m_lapic->software_enabled();
  if (m_lapic && !in_lapic_hole(address) && m_vm.irqchip()->mmio_write(*m_lapic, address, data, size)) {
    note_apic_enabled(apic_was_enabled);
    show_vapic();
    if (m_reports_tpr) note_tpr_access(address, true);
    return true;
  }
  return m_vm.io_events().write(IoBus::kMmio, address.value, data, size) ||
         m_vm.coalesced_io().write(IoBus::kMmio, address.value, data, size);
}

// The vector comes past the local APIC, as a PIC's does.
bool Vcpu::xen_upcall_pending() {
  if (!m_xen.may_have_upcall()) return false;
  if (m_in_guest.load()) return m_xen.upcall_pending();
  bool pending = false;
  m_cpu->visit_memory([&] { pending = m_xen.upcall_pending(); });
  return pending;
}

void Vcpu::halt_after_instruction() {
  x86::Exit exit;
  exit.reason = x86::Exit::Reason::kHalt;
  m_cpu->exit_after_instruction(exit);
}

std::optional<bool> Vcpu::chosen_msr_write(u32 index, u64 value) {
  return m_vm.xen().write_msr(*m_cpu, index, value);
}

bool Vcpu::interrupt_ready() {
  if (!m_lapic) return false;
  if (m_vapic && m_in_guest.load()) {
    take_vapic_tpr();
    show_vapic();
  }
  if (m_pv_eoi.offered() && m_lapic->highest_requested() >= 0) settle_pv_eoi();
  return m_vm.irqchip()->interrupt_ready(*m_lapic) || xen_upcall_pending();
}

// Only where nobody waits for the end of this interrupt, which is noticed late.
void Vcpu::offer_pv_eoi(u8 vector) {
  const bool awaited = m_vm.irqchip()->awaits_eoi(vector) || m_hyperv.awaits_end(vector);
  if (!awaited && m_lapic->has_quiet_eoi(vector)) m_pv_eoi.offer(*m_cpu);
}

void Vcpu::settle_pv_eoi() {
  if (m_pv_eoi.withdraw(*m_cpu)) m_lapic->eoi();
}

std::optional<u8> Vcpu::acknowledge_interrupt() {
  if (!m_lapic) return std::nullopt;
  if (xen_upcall_pending()) {
    // Whether the guest has dealt with it is seen when it takes interrupts again.
    m_cpu->request(x86::kAttentionEvent);
    return m_vm.xen().upcall_vector();
  }
  m_cpu->look_for_absent_pages();
  auto vector = m_vm.irqchip()->acknowledge(*m_lapic);
  if (vector && m_hyperv.ends_by_itself(*vector) && m_lapic->highest_in_service() == *vector) m_lapic->eoi();
  if (vector && PvEoi::enabled(state())) offer_pv_eoi(*vector);
  show_vapic();
  if (vector) ANYKVM_TRACE(irq, "vcpu {} takes vector {:#x}", m_id, *vector);
  return vector;
}

// An ExtINT that waits already, or LINT0 masked: the vector could not be put anywhere.
bool Vcpu::takes_client_interrupt() {
  return !m_lapic || (m_lapic->accepts_pic() && !m_lapic->has_client_vector());
}

void Vcpu::set_cr8(u8 value) {
  if (m_lapic) return m_lapic->set_cr8(value);
  const bool lowered = value < m_client_cr8;
  m_client_cr8 = value;
  if (!lowered) return;
  // The client has the interrupt controller: it may have an interrupt that this lets through.
  x86::Exit exit;
  exit.reason = x86::Exit::Reason::kTprAccess;
  m_cpu->exit_after_instruction(exit);
}

bool Vcpu::apic_msr_read(u32 index, u64* value) {
  if (m_pv_eoi.offered()) settle_pv_eoi();
  // A guest reads 0 once its timer has fired. A client that has read the local APIC before reads when it was
  // to fire: the copy of the CPU that it makes would have neither the interrupt nor the deadline.
  if (index == irqchip::kMsrTscDeadline && m_in_guest.load()) expire_timers();
  if (m_lapic) return m_lapic->msr_read(index, value);
  if (index == irqchip::kMsrApicBase) return *value = m_client_apic_base, true;
  return index == irqchip::kMsrTscDeadline ? (*value = 0, true) : false;
}

bool Vcpu::apic_msr_write(u32 index, u64 value) {
  if (m_pv_eoi.offered()) settle_pv_eoi();
  if (m_lapic) {
    const bool apic_was_enabled = m_lapic->software_enabled();
    const bool written = m_lapic->msr_write(index, value);
    note_apic_enabled(apic_was_enabled);
    return written;
  }
  if (index == irqchip::kMsrApicBase) return change_apic_base(value, false);
  return index == irqchip::kMsrTscDeadline;
}

bool Vcpu::async_page_fault_msr_write(u32 index, u64 value) {
  return m_async_page_faults.write_msr(*m_cpu, m_lapic.get(), index, value);
}

std::optional<u32> Vcpu::await_page(const u8* host) {
  return m_async_page_faults.begin(*m_cpu, m_vm.page_fetcher(), host);
}

void Vcpu::tell_of_pages() { m_async_page_faults.deliver(*m_cpu, *m_lapic); }

void Vcpu::note_apic_enabled(bool was_enabled) {
  if (!was_enabled && AsyncPageFaults::enabled(state()) && m_lapic->software_enabled())
    request(kRequestPagesArrived);
}

bool Vcpu::has_counters() { return m_vm.has_performance_counters(); }
bool Vcpu::counts_event(u64 select) { return m_vm.counter_filter().allows(select); }
bool Vcpu::counts_fixed(unsigned index) { return m_vm.counter_filter().allows_fixed(index); }

void Vcpu::performance_interrupt() {
  if (m_lapic) m_lapic->raise_performance_interrupt(m_cpu->model().intel());
}

void Vcpu::look_at_counters_at(u64 tsc) {
  if (!m_lapic) return;
  if (!m_counter_timer) m_counter_timer = m_vm.timers().add([this] { m_cpu->request(x86::kAttentionPmu); });
  const u64 now = host_tsc();
  const u64 wait = tsc > now ? (tsc - now) * 1'000'000 / host_tsc_khz() : 0;
  m_vm.timers().arm(m_counter_timer, monotonic_ns() + wait);
}

bool Vcpu::msr_filtered(u32 index, bool write) { return m_vm.msr_filter().denies(index, write); }
bool Vcpu::msr_exit_wanted(u32 reason) { return m_vm.msr_exits() & reason; }
bool Vcpu::fixes_hypercalls() { return m_vm.has_quirk(KVM_X86_QUIRK_FIX_HYPERCALL_INSN); }
bool Vcpu::opens_lint0() { return m_vm.has_quirk(KVM_X86_QUIRK_LINT0_REENABLED); }
bool Vcpu::platform_info_readable() { return m_vm.platform_info_readable(); }

u64 Vcpu::client_tsc_offset(u64 value, u64 offset) { return m_vm.tsc_sync().write(value, offset, m_tsc_khz); }

void Vcpu::set_tsc_offset(u64 offset) {
  m_vm.tsc_sync().set(offset, m_tsc_khz);
  state().tsc_offset = offset;
  x86::refresh_kvmclock(*m_cpu);
  if (m_lapic) m_lapic->tsc_changed();
}

u64 Vcpu::kvmclock_ns(u64 tsc) { return m_vm.clock().ns_at(tsc); }

// --- irqchip::LapicHost and Clock ---

void Vcpu::interrupt_posted() {
  m_cpu->request(x86::kAttentionEvent);
  m_waiter.wake();
}

void Vcpu::nmi() {
  m_cpu->queue_nmi();
  m_cpu->request(x86::kAttentionEvent);
  m_waiter.wake();
}

void Vcpu::smi() {
  m_cpu->queue_smi();
  m_waiter.wake();
}

void Vcpu::set_init_latched(bool latched) {
  m_init_latched = latched && blocks_init();
  if (latched && !m_init_latched && m_lapic) init();
}

void Vcpu::unhalt() {
  m_unhalted = true;
  m_waiter.wake();
}

void Vcpu::init() { request(kRequestInit); }

void Vcpu::sipi(u8 vector) {
  m_sipi_vector = vector;
  request(kRequestSipi);
}

void Vcpu::client_ioapic_eoi(u8 vector) {
  m_client_eoi = vector;
  request(kRequestClientEoi);
}

void Vcpu::request(u8 request) {
  m_requests.fetch_or(request);
  m_cpu->request(x86::kAttentionKick);
  m_waiter.wake();
}

void Vcpu::deadline_changed() {
  if (m_in_guest.load()) return arm_timer();
  m_waiter.wake();
}

u64 Vcpu::next_deadline_ns() const {
  if (!m_lapic) return kNever;
  return std::min({m_lapic->next_deadline_ns(), m_hyperv.deadline_ns(), m_xen.deadline_ns()});
}

void Vcpu::arm_timer() {
  // The vCPU and the timer thread may both be here, and the one that stores last may have looked first.
  u64 deadline = 0;
  do {
    deadline = next_deadline_ns();
    m_vm.timers().arm(m_timer, deadline);
  } while (next_deadline_ns() != deadline);
}

void Vcpu::look_at_hyperv_timers(bool later) {
  if (later) return request(kRequestHypervTimers);
  m_hyperv.run_timers();
  deadline_changed();
}

u64 Vcpu::guest_tsc_to_ns(u64 tsc) {
  const u64 now = m_cpu->read_tsc();
  if (tsc <= now) return 0;
  const u32 khz = m_tsc_khz.load(std::memory_order_relaxed);
  const auto wait = (static_cast<unsigned __int128>(tsc - now) * 1'000'000 + khz - 1) / khz;
  constexpr u64 kLongest = u64{1} << 62;
  return monotonic_ns() + static_cast<u64>(std::min<unsigned __int128>(wait, kLongest));
}

// --- SignalListener ---

void Vcpu::signal_arrived() {
  m_signalled.store(true);
  m_cpu->request(x86::kAttentionKick);
  m_waiter.wake();
  if (m_waits_for_server.load()) eventfd_write(m_server_wake.get(), 1);
}

}  // namespace anykvm::core
