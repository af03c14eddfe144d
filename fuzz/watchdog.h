#pragma once
// Ends KVM_RUNs by a kick (immediate_exit and a signal) once their time is over, and the process if a kick
// does not. Owner: a fuzzer's main(). Its own thread; the functions from any thread.

#include <linux/kvm.h>
#include <pthread.h>

#include <atomic>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/types.h"

namespace anykvm::fuzz {

class Watchdog {
 public:
  static constexpr int kSignal = 10;  // SIGUSR1: its handler does nothing

  Watchdog();
  ~Watchdog();

  // While one lives, its thread runs guest code until `milliseconds` are over.
  class Turn {
   public:
    Turn(Watchdog& watchdog, kvm_run* run, u64 milliseconds, std::string name);
    ~Turn();
    bool over() const { return m_over.load(); }

   private:
    friend class Watchdog;
    Watchdog& m_watchdog;
    kvm_run* m_run;  // null: a call that must come back by itself
    u64 m_deadline;
    std::string m_name;
    pthread_t m_thread;
    std::atomic<bool> m_over{false};
  };

 private:
  static constexpr u64 kPatience = 20'000;  // milliseconds from a kick to the end of the process

  void watch();
  void look_at(Turn& turn, u64 now);

  std::mutex m_mutex;
  std::vector<Turn*> m_turns;
  std::atomic<bool> m_ends{false};
  std::thread m_thread;
};

u64 milliseconds_now();

}  // namespace anykvm::fuzz
