#include "core/vm.h"

#include <errno.h>
#include <pthread.h>

#include "base/client_memory.h"
#include "base/counters.h"
#include "base/trace.h"
#include "core/host_tsc.h"
#include "core/vcpu.h"

namespace anykvm::core {
namespace {

// Counts fork()s on the way to this process; objects remember theirs.
unsigned g_fork_generation = 0;
[[maybe_unused]] const int g_fork_watch = pthread_atfork(nullptr, nullptr, [] { ++g_fork_generation; });

}  // namespace

u64 Vm::PitClock::now_ns() { return monotonic_ns(); }

Vm::Vm(std::unique_ptr<x86::Machine> machine)
    : m_creation_tsc(host_tsc()),
      m_fork_generation(g_fork_generation),
      m_default_tsc_khz(host_tsc_khz()),
      m_machine(std::move(machine)) {}

Vm::~Vm() {
  if (m_pit_timer) m_timers.remove(m_pit_timer);
  ANYKVM_TRACE(counters, "{}", counters::summary());
}

bool Vm::belongs_to_this_process() const { return m_fork_generation == g_fork_generation; }

Result<std::shared_ptr<Vm>> Vm::create(u64 type) {
  if (type != 0) return Error{EINVAL, "unknown VM type"};
  return std::shared_ptr<Vm>(new Vm(TRY(x86::Machine::create())));
}

// --- vCPUs ---

Result<std::shared_ptr<Vcpu>> Vm::create_vcpu(u64 id) {
  if (id >= kMaxVcpus) return Error{EINVAL, "vCPU id is too large"};
  std::lock_guard lock(m_mutex);
  if (m_vcpus.contains(static_cast<u32>(id))) return Error{EEXIST, "there is a vCPU with this id"};
  auto vcpu = TRY(Vcpu::create(*this, static_cast<u32>(id)));
  if (m_vcpus.empty()) m_coalesced_io.set_ring(vcpu->shared_page().ring());
  auto& owned = m_vcpus[static_cast<u32>(id)] = std::move(vcpu);
  return std::shared_ptr<Vcpu>(shared_from_this(), owned.get());
}

Result<> Vm::set_boot_cpu(u64 id) {
  std::lock_guard lock(m_mutex);
  if (!m_vcpus.empty()) return Error{EBUSY, "vCPUs exist already"};
  m_boot_cpu = static_cast<u32>(id);
  return {};
}

bool Vm::has_vcpus() const {
  std::lock_guard lock(m_mutex);
  return !m_vcpus.empty();
}

// --- memory ---

Result<> Vm::set_user_memory_region(const kvm_userspace_memory_region& region) {
  std::lock_guard lock(m_slots_mutex);
  auto change = TRY(m_slots.set_region(region));
  ANYKVM_TRACE(memory, "slot {} gpa {:#x} size {:#x} host {:#x} flags {:#x}: change {}", region.slot,
               region.guest_phys_addr, region.memory_size, region.userspace_addr, region.flags,
               static_cast<int>(change));
  if (change != MemorySlots::Change::kNothing) m_machine->set_slots(m_slots.layout());
  return {};
}

Result<> Vm::get_dirty_log(u32 slot_id, u64 client_bitmap) {
  if (slot_id >= kMaxMemorySlots) return Error{EINVAL, "no such slot or address space"};
  std::lock_guard lock(m_slots_mutex);
  const x86::MemorySlot* slot = m_slots.find(slot_id);
  if (!slot || !slot->dirty_bitmap) return Error{ENOENT, "the slot has no dirty log"};
  auto& bitmap = *slot->dirty_bitmap;
  std::vector<u64> snapshot(bitmap.size());
  // Stopping the world flushes the TLBs, so the next write to each page is noticed again.
  m_machine->stop_the_world([&] {
    for (std::size_t i = 0; i < bitmap.size(); ++i) snapshot[i] = bitmap[i].exchange(0);
  });
  auto copied = copy_to_client(client_bitmap, snapshot.data(), snapshot.size() * sizeof(u64));
  if (copied.ok()) return {};
  for (std::size_t i = 0; i < bitmap.size(); ++i) bitmap[i].fetch_or(snapshot[i]);
  return copied.error();
}

bool Vm::is_guest_memory(Gpa address, u64 size) {
  std::lock_guard lock(m_slots_mutex);
  return m_machine->memory().host(address, size) != nullptr;
}

// --- interrupts ---

Result<> Vm::create_irqchip() {
  std::lock_guard lock(m_mutex);
  if (m_irqchip_storage) return Error{EEXIST, "there is an irqchip"};
  if (!m_vcpus.empty()) return Error{EINVAL, "vCPUs exist already"};
  m_irqchip_storage = std::make_unique<irqchip::IrqChip>();
  m_irq_fds = std::make_unique<IrqFds>(*m_irqchip_storage);
  m_irqchip.store(m_irqchip_storage.get(), std::memory_order_release);
  return {};
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
  TRY(require_irqchip(EINVAL));
  return m_irq_fds->change(request);
}

// --- time ---

Result<> Vm::set_default_tsc_khz(u64 khz) {
  if (khz > ~u32{0}) return Error{EINVAL, "TSC rate is too large"};
  if (has_vcpus()) return Error{EINVAL, "vCPUs exist already"};
  m_default_tsc_khz = khz ? static_cast<u32>(khz) : host_tsc_khz();
  return {};
}

}  // namespace anykvm::core
