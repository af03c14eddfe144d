#include "x86/machine.h"

#include <algorithm>
#include <thread>

#include "base/counters.h"
#include "x86/cpu.h"
#include "x86/mmu/absent_pages.h"
#include "x86/mmu/client_writes.h"
#include "x86/translate/code_cache.h"
#include "x86/translate/host_signals.h"

namespace anykvm::x86 {
namespace {

// The same memory at the same place, and what is known of its pages: only flags differ.
bool same_pages(const MemorySlot& a, const MemorySlot& b) {
  return a.base == b.base && a.size == b.size && a.host == b.host && a.pages == b.pages;
}

}  // namespace

Result<std::unique_ptr<Machine>> Machine::create() {
  std::unique_ptr<Machine> machine(new Machine);
  install_host_signal_handlers();  // for guarded accesses outside Cpu::run()
  machine->m_code = TRY(CodeCache::create());
  machine->m_client_writes = ClientWrites::create(*machine->m_code);
  machine->m_absent_pages = std::make_unique<AbsentPages>(*machine->m_client_writes);
  return machine;
}

Machine::Machine() = default;
Machine::~Machine() = default;

void Machine::stop_the_world(const std::function<void()>& change) {
  std::lock_guard world(m_world);
  change_with_running(0, change);
}

bool Machine::stop_others(const std::function<void()>& change) {
  std::unique_lock world(m_world, std::try_to_lock);
  if (!world) return false;
  // This one is asked as well: it need not know which it is, and has nothing against a flush.
  change_with_running(1, change);
  return true;
}

// m_world.
void Machine::change_with_running(std::ptrdiff_t cpus, const std::function<void()>& change) {
  ANYKVM_COUNT(world_stops);
  std::unique_lock lock(m_mutex);
  m_stopped.store(true);
  ++m_waiting;
  for (Cpu* cpu : m_cpus) cpu->request(kAttentionWorld);
  m_changed.wait(lock, [&] { return std::ranges::count_if(m_cpus, &Cpu::in_guest) == cpus; });
  --m_waiting;
  lock.unlock();
  change();
  lock.lock();
  m_stopped.store(false);
  m_changed.notify_all();
}

void Machine::flush_tlbs(std::span<Cpu* const> cpus) {
  struct Visit {
    Cpu* cpu;
    u64 number;
  };
  std::vector<Visit> visits;
  std::unique_lock lock(m_mutex);
  ++m_waiting;
  for (Cpu* cpu : cpus) {
    cpu->request(kAttentionWorld);
    const u64 number = cpu->m_visits.load();
    if (number % 2) visits.push_back({cpu, number});
  }
  m_changed.wait(lock, [&] {
    return std::ranges::all_of(visits,
                               [](const Visit& visit) { return visit.cpu->m_visits.load() != visit.number; });
  });
  --m_waiting;
}

// Its cost does not grow with the number of slots that stay: layouts may have thousands, and change often.
void Machine::change_slots(std::span<const Gpa> gone, std::vector<MemorySlot> come) {
  for (MemorySlot& slot : come) {
    if (!slot.pages) slot.pages = PageMetas::create(slot.size / kPageSize);
  }
  stop_the_world([&] {
    std::vector<MemorySlot> left;
    for (Gpa base : gone) {
      if (const MemorySlot* slot = m_memory.find(base)) left.push_back(*slot);
    }
    for (const MemorySlot& slot : left) {
      if (std::none_of(come.begin(), come.end(),
                       [&](const MemorySlot& now) { return same_pages(slot, now); }))
        forget_code(slot);
    }
    m_client_writes->change_slots(left, come);
    m_memory.change_slots(gone, std::move(come));
    m_absent_pages->memory_changed();
  });
}

void Machine::set_slots(std::vector<MemorySlot> slots) {
  std::vector<Gpa> gone;
  for (const MemorySlot& slot : m_memory.slots()) gone.push_back(slot.base);
  change_slots(gone, std::move(slots));
}

void Machine::discard_code() {
  stop_the_world([&] { forget_code(); });
}

// Only the pages that have code are visited: guests are large.
void Machine::forget_code(const MemorySlot& slot) {
  for (Gpa page : m_code->pages(slot.base, slot.size)) {
    slot.meta(page).has_code.store(0, std::memory_order_relaxed);
    m_code->drop(page);
  }
}

void Machine::forget_code() {
  for (Gpa page : m_code->pages()) {
    if (const MemorySlot* slot = m_memory.find(page))
      slot->meta(page).has_code.store(0, std::memory_order_relaxed);
  }
  m_code->clear();
}

u8 Machine::add_cpu(Cpu* cpu) {
  std::lock_guard lock(m_mutex);
  m_cpus.push_back(cpu);
  // PageMeta::writer has room for 254 CPUs; those beyond share its "several" value.
  return static_cast<u8>(std::min<std::size_t>(++m_numbered, 255));
}

void Machine::remove_cpu(Cpu* cpu) {
  std::lock_guard lock(m_mutex);
  std::erase(m_cpus, cpu);
}

void Machine::enter_guest(Cpu& cpu) {
  ++cpu.m_visits;
  if (m_stopped.load()) [[unlikely]]
    wait_for_the_world(cpu);
}

void Machine::leave_guest(Cpu& cpu) {
  ++cpu.m_visits;
  if (!m_waiting.load()) [[likely]]
    return;
  std::lock_guard lock(m_mutex);
  m_changed.notify_all();
}

// While m_mutex is held, nobody begins to stop the world.
void Machine::wait_for_the_world(Cpu& cpu) {
  std::unique_lock lock(m_mutex);
  ++cpu.m_visits;
  m_changed.notify_all();
  m_changed.wait(lock, [&] { return !m_stopped.load(); });
  ++cpu.m_visits;
}

}  // namespace anykvm::x86
