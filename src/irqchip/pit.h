#pragma once
// The 8254 timer: three counters, port 61H for the gate of counter 2, counter 0 on IRQ 0.
// Owner: IrqChip. Any thread: m_mutex (a leaf lock, not held while `irq0` runs).

#include <linux/kvm.h>

#include <array>
#include <atomic>
#include <functional>
#include <mutex>

#include "base/types.h"
#include "irqchip/clock.h"

namespace anykvm::irqchip {

inline constexpr u64 kPitHz = 1193182;

class Pit {
 public:
  // `irq0` pulses IRQ 0 and says whether anybody took it; `deadline_changed` tells whoever sleeps until
  // next_deadline_ns(). Both are called without m_mutex, from the thread that wrote a port or called
  // expire(). `speaker`: answer port 61H (KVM_PIT_SPEAKER_DUMMY).
  struct Callbacks {
    std::function<bool()> irq0;
    std::function<void()> deadline_changed;
  };
  Pit(Clock& clock, Callbacks callbacks, bool speaker);

  void reset();
  bool owns_port(u16 port) const;  // 40-43, and 61 with a speaker
  u8 read(u16 port);
  void write(u16 port, u8 value);

  u64 next_deadline_ns() const { return m_deadline.load(std::memory_order_acquire); }
  // Fires IRQ 0 for what became due. With reinjection a tick waits until the last one was acknowledged, and
  // none is lost.
  void expire(u64 now_ns);
  // What was not acknowledged will not be: the line was masked until now.
  void irq0_unmasked();
  void irq0_acknowledged();          // EOI for IRQ 0 reached PIC or IOAPIC
  void set_reinject(bool reinject);  // KVM_REINJECT_CONTROL

  kvm_pit_state2 state();  // KVM_GET_PIT2; KVM_GET_PIT is its channels
  void set_state(const kvm_pit_state2& state);

 private:
  using Channel = kvm_pit_channel_state;
  // What the client's structure has no room for.
  struct Running {
    bool loaded = false;     // a count was written since the control word
    bool triggered = false;  // modes 1 and 5: the gate rose
    u64 frozen_ns = 0;       // but for those modes: how long it had counted when the gate fell
  };

  bool is_running(unsigned index) const;
  bool is_frozen(unsigned index) const;
  u64 elapsed_ns(unsigned index);
  u64 elapsed_clocks(unsigned index);
  u32 count(unsigned index);    // what the counter shows
  bool output(unsigned index);  // its OUT pin
  u8 status(unsigned index);
  void load_count(unsigned index, u32 value);
  void write_counter(unsigned index, u8 value);
  void write_control(u8 value);
  void read_back(u8 value);
  void latch_count(unsigned index);
  void latch_status(unsigned index);
  u8 read_counter(unsigned index);
  u8 read_port_61();
  void write_port_61(u8 value);
  void set_gate(unsigned index, bool level);
  void update_deadline(u64 after_ns);  // next rising edge of OUT 0 after `after_ns`
  void restore_channel(unsigned index, const Channel& state);
  void forget_ticks();
  void fire();  // m_mutex not held

  Clock& m_clock;
  const Callbacks m_callbacks;
  const bool m_speaker;
  std::mutex m_mutex;  // guards everything below; m_deadline is written under it
  std::array<Channel, 3> m_channels{};
  std::array<Running, 3> m_running{};
  u32 m_flags = 0;
  bool m_reinject = true;
  bool m_acknowledged = true;  // the last tick was
  u64 m_pending = 0;           // ticks that were not, the last one included
  std::atomic<u64> m_deadline{kNever};
};

}  // namespace anykvm::irqchip
