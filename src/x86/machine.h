#pragma once
// What the guest CPUs of one VM share: memory map and translated code; and the means to stop them all for a
// moment. Owner: core::Vm. Thread-safe where a declaration does not say otherwise.

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "base/expected.h"
#include "x86/mmu/physical_memory.h"

namespace anykvm::x86 {

class Cpu;
class CodeCache;
class ClientWrites;

class Machine {
 public:
  // Fails where generated code may not be executed (EACCES, EPERM) or memory is short (ENOMEM).
  static Result<std::unique_ptr<Machine>> create();
  ~Machine();
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  const PhysicalMemory& memory() const { return m_memory; }
  CodeCache& code() { return *m_code; }
  ClientWrites& client_writes() { return *m_client_writes; }

  // Runs `change` while no vCPU of this VM executes guest code, then flushes every vCPU's TLB. Call it from
  // any thread except from inside Cpu::run()'s callbacks (Platform), and without holding a lock that such a
  // callback takes.
  void stop_the_world(const std::function<void()>& change);

  // Replaces the memory layout and drops translated code (stops the world). Slots without `pages` get them.
  void set_slots(std::vector<MemorySlot> slots);

  // Drops every translation (stops the world): client-made changes to guest memory that we were not told of.
  void discard_code();

  // Returns the CPU's number in PageMeta::writer.
  u8 add_cpu(Cpu* cpu);
  void remove_cpu(Cpu* cpu);

 private:
  friend class Cpu;
  Machine();
  void forget_code();
  // Cpu::run() brackets guest execution with these; enter blocks while the world is stopped.
  void enter_guest(Cpu& cpu);
  void leave_guest(Cpu& cpu);

  PhysicalMemory m_memory;
  std::unique_ptr<CodeCache> m_code;
  std::unique_ptr<ClientWrites> m_client_writes;
  std::mutex m_world;  // held by whoever stops the world
  std::mutex m_mutex;  // guards m_cpus, m_running, m_stopped
  std::condition_variable m_changed;
  std::vector<Cpu*> m_cpus;
  unsigned m_running = 0;
  std::size_t m_numbered = 0;
  bool m_stopped = false;
};

}  // namespace anykvm::x86
