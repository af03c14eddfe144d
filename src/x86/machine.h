#pragma once
// What the guest CPUs of one VM share: memory map and translated code; and the means to stop them all for a
// moment. Owner: core::Vm. Thread-safe where a declaration does not say otherwise.

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "base/expected.h"
#include "x86/mmu/physical_memory.h"

namespace anykvm::x86 {

class Cpu;
class CodeCache;
class ClientWrites;
class AbsentPages;

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
  AbsentPages& absent_pages() { return *m_absent_pages; }

  // Runs `change` while no vCPU of this VM executes guest code, then flushes every vCPU's TLB. Call it from
  // any thread except from inside Cpu::run()'s callbacks (Platform), and without holding a lock that such a
  // callback takes.
  void stop_the_world(const std::function<void()>& change);

  // From a vCPU inside Cpu::run(): runs `change` while no other vCPU executes guest code. False, and nothing
  // done: somebody else stops the world now, and waits for this vCPU.
  bool stop_others(const std::function<void()>& change);

  // Flushes the TLBs of `cpus`. When it returns, none of them uses what it held before. Not from inside
  // Cpu::run().
  void flush_tlbs(std::span<Cpu* const> cpus);

  // The slots that begin at `gone` go and those of `come` are there instead, all at once (stops the world).
  // Code translated from what is no longer at its place is dropped. Slots without `pages` get them.
  void change_slots(std::span<const Gpa> gone, std::vector<MemorySlot> come);
  // Replaces the whole memory layout.
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
  void forget_code(const MemorySlot& slot);
  // Cpu::run() brackets guest execution with these; enter blocks while the world is stopped. They take a lock
  // only if somebody waits for vCPUs: each vCPU first counts its visit and then looks, and whoever waits says
  // so first and then looks at the visits (Cpu::m_visits).
  void enter_guest(Cpu& cpu);
  void leave_guest(Cpu& cpu);
  void wait_for_the_world(Cpu& cpu);
  void change_with_running(std::ptrdiff_t cpus, const std::function<void()>& change);

  PhysicalMemory m_memory;
  std::unique_ptr<CodeCache> m_code;
  std::unique_ptr<ClientWrites> m_client_writes;
  std::unique_ptr<AbsentPages> m_absent_pages;
  std::mutex m_world;  // held by whoever stops the world
  std::mutex m_mutex;  // guards m_cpus and m_numbered; held to change what m_changed is about
  std::condition_variable m_changed;
  std::vector<Cpu*> m_cpus;
  std::size_t m_numbered = 0;
  std::atomic<unsigned> m_waiting{0};  // threads that want to hear of vCPUs leaving the guest
  std::atomic<bool> m_stopped{false};
};

}  // namespace anykvm::x86
