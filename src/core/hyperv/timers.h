#pragma once
// The four synthetic timers of one virtual processor (TLFS 12.5). They expire by the partition's reference
// time, and tell of it by a message or, in direct mode, by an interrupt.
// Owner: VirtualProcessor. The vCPU's thread, or the client's while it does not run; deadline_ns() from any.

#include <array>
#include <atomic>

#include "core/hyperv/tlfs.h"
#include "core/single_waiter.h"

namespace anykvm::core::hyperv {

class Timers {
 public:
  // What the timers need of their processor.
  class Host {
   public:
    virtual ~Host() = default;
    virtual u64 reference_time() = 0;
    enum class Told : u8 { kYes, kLater };  // kLater: message_read() will be called
    virtual Told tell_expiry(unsigned timer, u64 config, u64 expiration) = 0;
  };

  explicit Timers(Host& host) : m_host(host) {}

  static bool owns_msr(u32 index) { return index >= kMsrTimer0Config && index <= kMsrTimer3Count; }
  u64 read_msr(u32 index) const;
  // Whoever calls it calls run() as soon as guest memory may be used.
  void write_msr(u32 index, u64 value, bool from_client);

  // CLOCK_MONOTONIC; kNever: none is running.
  u64 deadline_ns() const { return m_deadline.load(std::memory_order_acquire); }
  // Lets those expire whose time has come, and starts those that were set up.
  void run();
  // The guest has emptied the slot of this source.
  void message_read(unsigned sint);
  // run() has something to do.
  bool has_work() const { return m_work; }

 private:
  struct Timer {
    u64 config = 0, count = 0;
    u64 expiration = 0;  // reference time; 0: not running
    u64 deadline_ns = kNever;
    bool work = false;    // to be looked at
    bool untold = false;  // expired, and the message could not be placed yet
  };

  static void stop(Timer& timer);
  void look_at(unsigned number);
  void expire(unsigned number);
  bool start(Timer& timer);
  void look_later(Timer& timer) { timer.work = m_work = true; }

  Host& m_host;
  std::array<Timer, kTimers> m_timers;
  bool m_work = false;  // some timer's `work`
  std::atomic<u64> m_deadline{kNever};
};

}  // namespace anykvm::core::hyperv
