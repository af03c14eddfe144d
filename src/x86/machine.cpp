#include "x86/machine.h"

#include <algorithm>
#include <thread>

#include "x86/cpu.h"
#include "x86/mmu/client_writes.h"
#include "x86/translate/code_cache.h"
#include "x86/translate/host_signals.h"

namespace anykvm::x86 {

Result<std::unique_ptr<Machine>> Machine::create() {
  std::unique_ptr<Machine> machine(new Machine);
  install_host_signal_handlers();  // for guarded accesses outside Cpu::run()
  machine->m_code = TRY(CodeCache::create());
  machine->m_client_writes = ClientWrites::create(*machine->m_code);
  return machine;
}

Machine::Machine() = default;
Machine::~Machine() = default;

void Machine::stop_the_world(const std::function<void()>& change) {
  std::lock_guard world(m_world);
  std::unique_lock lock(m_mutex);
  m_stopped = true;
  for (Cpu* cpu : m_cpus) cpu->request(kAttentionWorld);
  m_changed.wait(lock, [&] { return m_running == 0; });
  lock.unlock();
  change();
  lock.lock();
  m_stopped = false;
  m_changed.notify_all();
}

void Machine::set_slots(std::vector<MemorySlot> slots) {
  for (MemorySlot& slot : slots) {
    if (!slot.pages) slot.pages = PageMetas::create(slot.size / kPageSize);
  }
  stop_the_world([&] {
    forget_code();
    m_memory.set_slots(std::move(slots));
    m_client_writes->set_slots(m_memory.slots());
  });
}

void Machine::discard_code() {
  stop_the_world([&] { forget_code(); });
}

// Only the pages that have code are visited: layouts change often, and guests are large.
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

void Machine::enter_guest(Cpu&) {
  std::unique_lock lock(m_mutex);
  m_changed.wait(lock, [&] { return !m_stopped; });
  ++m_running;
}

void Machine::leave_guest(Cpu&) {
  std::lock_guard lock(m_mutex);
  if (--m_running == 0) m_changed.notify_all();
}

}  // namespace anykvm::x86
