#pragma once
// Performance counters: which there are, what each counts, and when they overflow (SDM 3B 19.2, APM 2 13.2).
// Instructions, branches and memory accesses are counted by translated code, in blocks of modes made for it
// (Mode::counts_*), cycles by the TSC while the guest runs; where no counter runs nothing is done for them at
// all. What is counted at the current privilege level is collected into the registers (state/pmu_state.h)
// whenever somebody looks or the level changes. Owner: x86::Cpu. Only the vCPU's thread, but for
// events_replaced().

#include <array>
#include <atomic>

#include "base/types.h"
#include "x86/state/pmu_state.h"
#include "x86/translate/event_counts.h"

namespace anykvm::x86 {

class Cpu;

inline constexpr u64 kEventsUnlimited = u64{1} << 54;

class Pmu {
 public:
  // What the model has.
  struct Layout {
    u8 version = 0;  // 0: no counters
    bool intel = false;
    bool zen = false;  // AMD's family 17H or later
    u8 general = 0, fixed = 0;
    u32 absent = 0;  // CPUID.0AH:EBX, the architectural events that it says are not there
    u64 general_mask = 0, fixed_mask = 0;
  };

  explicit Pmu(Cpu& cpu) : m_cpu(cpu) {}

  const Layout& layout() const { return m_layout; }
  // Some counter is on.
  bool active() const { return m_count != 0; }
  // Is there one that counts these at the current privilege level?
  bool counts(Counted what) const { return m_wanted[m_user] & bit_of(what); }
  bool counts_accesses() const { return m_wanted[m_user] & kAccessKinds; }
  // May one of those overflow before long? Otherwise nobody need look.
  bool overflows_soon() const { return m_soon; }

  // Brings the registers up to date.
  void collect();
  // A register that selects events, the model or the client's filter has changed. The caller then calls
  // Cpu::mode_changed().
  void refresh();
  // Inside Cpu::mode_changed(), before the mode is computed.
  void changed_privilege(u8 cpl);
  void enter_guest();
  void leave_guest();

  // Translated code has counted so far that a counter has overflowed.
  bool overflowed() const;
  // After that, or by kAttentionPmu: delivers interrupts.
  void attend();
  // Any thread: the client has another filter (Platform::counts_event).
  void events_replaced();

  // An exception or interrupt was delivered.
  void delivered();
  // A branch that code has counted did not complete.
  void branch_faulted();

 private:
  static constexpr u8 kAccessKinds = bits_of(Counted::kLoads, Counted::kStores, Counted::kUpdates);

  struct Counter {
    u64* value;
    u64 mask;
    u64 status;  // bit of IA32_PERF_GLOBAL_STATUS
    u8 what;     // bits by Counted; their sum
    bool at[2];  // CPL 0, others
    bool interrupts;
  };

  Layout find_layout() const;
  void add_general(unsigned index);
  void add_fixed(unsigned index);
  u8 find_event(u64 select) const;
  void advance(const Counter& counter, i64 events);
  void count_instruction_and_branch(i64 times);
  static Counted looked_at_for(const Counter& counter);
  void arm();
  u64 take_cycles();
  u64 deadline_after(u64 cycles) const;

  Cpu& m_cpu;
  Layout m_layout;
  std::array<Counter, kGeneralCounters + kFixedCounters> m_counters{};
  unsigned m_count = 0;
  bool m_user = false;
  u8 m_wanted[2] = {};               // bits by Counted, at CPL 0 and others
  u64 m_armed[kCountedByCode] = {};  // what Context::events_left was
  bool m_soon = false;
  static constexpr u64 kNoDeadline = ~u64{0};
  // Host TSC: of the next interrupt by a counter of cycles, and what the platform waits for.
  u64 m_deadline = kNoDeadline, m_awaited = kNoDeadline;
  bool m_running = false;
  u64 m_since = 0;  // host TSC
  bool m_interrupt_due = false;
  std::atomic<bool> m_stale{false};
};

}  // namespace anykvm::x86
