#pragma once
// One VM of the fuzzer: random code on one or several CPUs, a client that answers nonsense and pokes about.
// Owner: main(). Its own threads live inside run().

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "guest_memory.h"
#include "program.h"
#include "watchdog.h"

namespace anykvm::fuzz {

struct Counts {
  std::atomic<u64> programs{0}, exits{0}, kicks{0}, shutdowns{0}, errors{0}, refused{0};
};

class VirtualMachine {
 public:
  VirtualMachine(u64 seed, unsigned cpus, Watchdog& watchdog, Counts& counts);
  ~VirtualMachine();
  VirtualMachine(const VirtualMachine&) = delete;
  VirtualMachine& operator=(const VirtualMachine&) = delete;

  // Runs so many programs on each CPU; what went wrong, or nothing.
  std::string run(unsigned programs);

 private:
  struct Cpu {
    int fd = -1;
    kvm_run* run = nullptr;
    Random random{0};
    std::string failure;
  };

  void create_slots();
  void change_slot(Random& random);
  void run_programs(Cpu& cpu, unsigned programs);
  bool run_program(Cpu& cpu, CpuMode mode);
  bool set_state(Cpu& cpu, CpuMode mode);
  bool one_exit(Cpu& cpu);
  void answer(Cpu& cpu);
  void interfere(Cpu& cpu);

  u64 m_seed;
  Watchdog& m_watchdog;
  Counts& m_counts;
  Random m_random;
  GuestMemory m_memory;
  int m_system = -1, m_vm = -1;
  bool m_irqchip = false;
  std::size_t m_run_size = 0;
  std::vector<std::unique_ptr<Cpu>> m_cpus;
};

}  // namespace anykvm::fuzz
