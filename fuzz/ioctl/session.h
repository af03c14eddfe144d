#pragma once
// Some thousand random calls of the KVM interface on a few VMs that several threads share. Owner: main(). The
// threads live inside run().

#include <linux/kvm.h>

#include <atomic>
#include <mutex>
#include <vector>

#include "program.h"
#include "watchdog.h"

namespace anykvm::fuzz {

enum class Kind : u8 { kSystem, kVm, kVcpu, kOther };

struct Totals {
  std::atomic<u64> calls{0}, good{0}, runs{0};
  std::atomic<u64> by_error[160]{};
};

class Session {
 public:
  Session(u64 seed, Watchdog& watchdog, Totals& totals);
  ~Session();  // closes everything
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  void run(unsigned threads, u64 calls);

 private:
  struct Descriptor {
    Kind kind;
    int fd;
    kvm_run* run = nullptr;  // of a vCPU: mapped as long as the session lives
  };
  class Caller;

  Descriptor pick(Random& random, Kind kind);
  void add(Kind kind, int fd);
  void remove(Random& random);
  std::size_t count(Kind kind);

  u64 m_seed;
  Watchdog& m_watchdog;
  Totals& m_totals;
  std::size_t m_run_size = 0;
  u8* m_ram = nullptr;  // what slots are made of
  std::mutex m_mutex;   // guards the rest
  std::vector<Descriptor> m_open;
  std::vector<int> m_closed;  // numbers that were descriptors
  std::vector<kvm_run*> m_mapped;
};

}  // namespace anykvm::fuzz
