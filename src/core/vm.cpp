#include "core/vm.h"

#include <errno.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include "base/client_memory.h"
#include "base/counters.h"
#include "base/fork.h"
#include "base/trace.h"
#include "core/host_tsc.h"
#include "core/vcpu.h"
#include "x86/sys/pmu.h"

namespace anykvm::core {

u64 Vm::PitClock::now_ns() { return monotonic_ns(); }

Vm::Vm(std::unique_ptr<x86::Machine> machine, u64 type)
    : m_creation_tsc(host_tsc()),
      m_fork_generation(fork_generation()),
      m_default_tsc_khz(host_tsc_khz()),
      m_machine(std::move(machine)),
      m_type(type) {}

Vm::~Vm() {
  if (m_pit_timer) m_timers.remove(m_pit_timer);
  ANYKVM_TRACE(counters, "{}", counters::summary());
}

bool Vm::belongs_to_this_process() const { return m_fork_generation == fork_generation(); }

Result<std::shared_ptr<Vm>> Vm::create(u64 type) {
  if (type != KVM_X86_DEFAULT_VM && type != KVM_X86_SW_PROTECTED_VM) return Error{EINVAL, "unknown VM type"};
  counters::publish();
  return std::shared_ptr<Vm>(new Vm(TRY(x86::Machine::create()), type));
}

// --- vCPUs ---

Result<std::shared_ptr<Vcpu>> Vm::create_vcpu(u64 id) {
  std::lock_guard lock(m_mutex);
  if (id >= (m_max_vcpu_ids ? m_max_vcpu_ids : kMaxVcpuIds)) return Error{EINVAL, "vCPU id is too large"};
  if (m_vcpus.size() >= kMaxVcpus) return Error{EINVAL, "too many vCPUs"};
  if (m_vcpus.contains(static_cast<u32>(id))) return Error{EEXIST, "there is a vCPU with this id"};
  auto vcpu = TRY(Vcpu::create(*this, static_cast<u32>(id)));
  if (m_vcpus.empty()) m_coalesced_io.set_ring(vcpu->shared_page().ring());
  auto& owned = m_vcpus[static_cast<u32>(id)] = std::move(vcpu);
  m_vcpus_by_id[id].store(owned.get(), std::memory_order_release);
  return std::shared_ptr<Vcpu>(shared_from_this(), owned.get());
}

Result<> Vm::set_boot_cpu(u64 id) {
  std::lock_guard lock(m_mutex);
  if (!m_vcpus.empty()) return Error{EBUSY, "vCPUs exist already"};
  if (id > (m_max_vcpu_ids ? m_max_vcpu_ids : kMaxVcpuIds)) return Error{EINVAL, "vCPU id is too large"};
  m_boot_cpu = static_cast<u32>(id);
  return {};
}

Result<> Vm::set_max_vcpu_ids(u64 limit) {
  std::lock_guard lock(m_mutex);
  if (limit > kMaxVcpuIds) return Error{EINVAL, "limit is too large"};
  if (m_boot_cpu.load() > limit) return Error{EINVAL, "the boot CPU is above the limit"};
  // The first vCPU settles it, if nothing did before.
  const u64 set = m_max_vcpu_ids || m_vcpus.empty() ? m_max_vcpu_ids : kMaxVcpuIds;
  if (set == limit) return {};
  if (set) return Error{EINVAL, "the limit is set already"};
  m_max_vcpu_ids = static_cast<u32>(limit);
  return {};
}

bool Vm::has_vcpus() const {
  std::lock_guard lock(m_mutex);
  return !m_vcpus.empty();
}

// --- memory ---

bool Vm::is_guest_memory(Gpa address, u64 size) {
  std::lock_guard lock(m_slots_mutex);
  return m_machine->memory().host(address, size) != nullptr;
}

std::optional<Gpa> Vm::guest_address(const u8* host) {
  std::lock_guard lock(m_slots_mutex);
  for (const x86::MemorySlot& slot : m_machine->memory().slots()) {
    if (host >= slot.host && static_cast<u64>(host - slot.host) < slot.size)
      return Gpa((slot.base.value + static_cast<u64>(host - slot.host)) & ~x86::kManagementSpace);
  }
  return std::nullopt;
}

Result<u64> Vm::pre_fault(u64 gpa, u64 size) {
  std::lock_guard lock(m_slots_mutex);
  const x86::MemorySlot* slot = m_machine->memory().find(Gpa(gpa));
  if (!slot) return Error{ENOENT, "no memory slot there"};
  const u64 offset = gpa - slot->base.value;
  const u64 length = std::min(size, slot->size - offset);
  // As reads do: private copies of a file's pages are not made yet (KVM API 4.143).
  if (madvise(slot->host + offset, length, MADV_POPULATE_READ) == 0) return length;
  return Error{errno == ENOMEM || errno == EINVAL ? EFAULT : errno, "the slot's memory cannot be populated"};
}

Result<Fd> Vm::stats_descriptor() {
  std::lock_guard lock(m_slots_mutex);
  return m_stats.descriptor(fmt::format("kvm-{}", getpid()));
}

// --- settings ---

Result<> Vm::set_apic_bus_cycle_ns(u64 ns) {
  // The longest count (32 bits, divided by 128) must fit in 64 bits of nanoseconds.
  constexpr u64 kLongest = u64{1} << 25;
  if (ns == 0 || ns > kLongest) return Error{EINVAL, "no such bus frequency"};
  TRY(require_irqchip(ENXIO));
  std::lock_guard lock(m_mutex);
  if (!m_vcpus.empty()) return Error{EINVAL, "vCPUs exist already"};
  m_apic_bus_cycle_ns = ns;
  return {};
}

Result<> Vm::set_performance_counters(bool wanted) {
  std::lock_guard lock(m_mutex);
  if (!m_vcpus.empty()) return Error{EINVAL, "vCPUs exist already"};
  m_performance_counters = wanted;
  return {};
}

void Vm::set_counter_filter(CounterFilter::Rules rules) {
  m_counter_filter.set(std::move(rules));
  std::lock_guard lock(m_mutex);
  for (auto& [id, vcpu] : m_vcpus) vcpu->cpu().pmu().events_replaced();
}

// --- interrupts ---

Result<> Vm::create_irqchip() {
  std::lock_guard lock(m_mutex);
  if (m_irqchip_storage) return Error{EEXIST, "there is an irqchip"};
  if (!m_vcpus.empty()) return Error{EINVAL, "vCPUs exist already"};
  install_irqchip(std::make_unique<irqchip::IrqChip>());
  return {};
}

Result<> Vm::create_split_irqchip(u64 reserved_pins) {
  if (reserved_pins > irqchip::kMaxIrqRoutes) return Error{EINVAL, "more pins than routes"};
  std::lock_guard lock(m_mutex);
  if (m_irqchip_storage) return Error{EEXIST, "there is an irqchip"};
  if (!m_vcpus.empty()) return Error{EEXIST, "vCPUs exist already"};
  install_irqchip(
      std::make_unique<irqchip::IrqChip>(irqchip::IrqChip::Kind::kSplit, static_cast<u32>(reserved_pins)));
  return {};
}

void Vm::install_irqchip(std::unique_ptr<irqchip::IrqChip> irqchip) {
  m_irqchip_storage = std::move(irqchip);
  apply_x2apic_api();
  m_irqchip_storage->set_sint_raiser([this](u32 vp_index, u32 sint) {
    hyperv::VirtualProcessor* processor = m_hyperv.find(vp_index);
    return processor ? processor->raise(sint) : -1;
  });
  m_irqchip_storage->set_event_raiser([this](u32 port, u32 vcpu) {
    xen::Domain::Sent sent = xen::Domain::Sent::kNowhere;
    with_memory([&] { sent = m_xen.send(port, vcpu); });
    return sent == xen::Domain::Sent::kRaised ? 1 : sent == xen::Domain::Sent::kAlreadyPending ? 0 : -1;
  });
  m_irq_fds = std::make_unique<IrqFds>(*m_irqchip_storage);
  m_irqchip.store(m_irqchip_storage.get(), std::memory_order_release);
}

void Vm::enable_x2apic_api(u64 flags) {
  std::lock_guard lock(m_mutex);
  m_x2apic_api |= flags;
  apply_x2apic_api();
}

void Vm::apply_x2apic_api() {
  if (!m_irqchip_storage) return;
  m_irqchip_storage->set_x2apic_api(m_x2apic_api & KVM_X2APIC_API_USE_32BIT_IDS,
                                    m_x2apic_api & KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK);
}

Result<irqchip::IrqChip*> Vm::require_irqchip(int error) const {
  if (auto* chip = irqchip()) return chip;
  return Error{error, "the VM has no irqchip"};
}

Result<irqchip::Pit*> Vm::require_pit() const {
  auto* chip = irqchip();
  auto* pit = chip ? chip->pit() : nullptr;
  if (!pit) return Error{ENXIO, "the VM has no PIT"};
  return pit;
}

Result<> Vm::create_pit(u32 flags) {
  auto* chip = TRY(require_irqchip(ENOENT));
  std::lock_guard lock(m_mutex);
  if (!m_pit_timer) m_pit_timer = m_timers.add([this] { pit_expired(); });
  return chip->create_pit(m_pit_clock, flags & KVM_PIT_SPEAKER_DUMMY, [this] { rearm_pit(); });
}

void Vm::pit_expired() {
  irqchip()->pit()->expire(monotonic_ns());
  rearm_pit();
}

void Vm::rearm_pit() {
  auto* pit = irqchip()->pit();
  if (!pit) return;
  // A vCPU and the timer thread may both be here, and the one that stores last may have looked first.
  u64 deadline = 0;
  do {
    deadline = pit->next_deadline_ns();
    m_timers.arm(m_pit_timer, deadline);
  } while (pit->next_deadline_ns() != deadline);
}

Result<> Vm::irqfd(const kvm_irqfd& request) {
  if (request.flags & KVM_IRQFD_FLAG_DEASSIGN && !irqchip()) return IrqFds::check_deassign(request);
  TRY(require_irqchip(EINVAL));
  const bool resamples =
      (request.flags & KVM_IRQFD_FLAG_RESAMPLE) && !(request.flags & KVM_IRQFD_FLAG_DEASSIGN);
  if (resamples && !has_pic())
    return Error{EINVAL, "only our own PIC and IOAPIC can tell of the end of an interrupt"};
  return m_irq_fds->change(request);
}

// --- time ---

Result<> Vm::set_clock(const kvm_clock_data& data) {
  TRY(m_clock.set(data));
  m_hyperv.clock_changed();
  std::lock_guard lock(m_mutex);
  for (auto& [id, vcpu] : m_vcpus) vcpu->cpu().request(x86::kAttentionKick);
  return {};
}

Result<> Vm::set_default_tsc_khz(u32 khz) {
  if (khz >= kTscKhzEnd) return Error{EINVAL, "TSC rate is too large"};
  if (has_vcpus()) return Error{EINVAL, "vCPUs exist already"};
  m_default_tsc_khz = khz ? khz : host_tsc_khz();
  return {};
}

}  // namespace anykvm::core
