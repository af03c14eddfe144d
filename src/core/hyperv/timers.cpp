#include "core/hyperv/timers.h"

#include <algorithm>
#include <utility>

namespace anykvm::core::hyperv {
namespace {

// The deadline after `ticks` of 100 ns.
u64 after(u64 ticks) {
  constexpr u64 kLongest = u64{1} << 62;
  return ticks >= kLongest / 100 ? kNever : monotonic_ns() + ticks * 100;
}

}  // namespace

u64 Timers::read_msr(u32 index) const {
  const Timer& timer = m_timers[(index - kMsrTimer0Config) / 2];
  return index % 2 ? timer.count : timer.config;
}

void Timers::write_msr(u32 index, u64 value, bool from_client) {
  Timer& timer = m_timers[(index - kMsrTimer0Config) / 2];
  stop(timer);
  if (index % 2) {
    timer.count = value;
    if (!from_client && value == 0) timer.config &= ~kTimerEnabled;
    if (!from_client && value != 0 && (timer.config & kTimerAutoEnable)) timer.config |= kTimerEnabled;
  } else {
    // TLFS 12.5.1: source 0 is for the hypervisor's own messages; a timer that runs is switched off by it.
    const bool no_source = !(value & kTimerDirect) && timer_sint(value) == 0;
    timer.config = (timer.config & kTimerEnabled) && no_source ? value & ~kTimerEnabled : value;
  }
  if (timer.config & kTimerEnabled) look_later(timer);
}

void Timers::stop(Timer& timer) {
  timer.expiration = 0;
  timer.deadline_ns = kNever;
  timer.work = timer.untold = false;
}

void Timers::run() {
  m_work = false;
  const u64 now = monotonic_ns();
  for (unsigned number = 0; number < kTimers; ++number) {
    Timer& timer = m_timers[number];
    const bool due = timer.deadline_ns <= now;
    if (due) timer.deadline_ns = kNever;
    if (std::exchange(timer.work, false) || due) look_at(number);
  }
  u64 first = kNever;
  for (const Timer& timer : m_timers) first = std::min(first, timer.deadline_ns);
  m_deadline.store(first, std::memory_order_release);
}

void Timers::look_at(unsigned number) {
  Timer& timer = m_timers[number];
  if (!(timer.config & kTimerEnabled)) return;
  if (timer.expiration && m_host.reference_time() >= timer.expiration) expire(number);
  if (!(timer.config & kTimerEnabled) || !timer.count) return stop(timer);
  if (timer.untold || !start(timer)) return;
  expire(number);
  if (!(timer.config & kTimerEnabled)) stop(timer);
}

void Timers::expire(unsigned number) {
  Timer& timer = m_timers[number];
  timer.untold = m_host.tell_expiry(number, timer.config, timer.expiration) == Host::Told::kLater;
  if (!timer.untold && !(timer.config & kTimerPeriodic)) timer.config &= ~kTimerEnabled;
}

// A periodic timer keeps its beat, however late it is looked at; a one-shot's count is the time itself, which
// may have passed: true then.
bool Timers::start(Timer& timer) {
  const u64 now = m_host.reference_time();
  if (!(timer.config & kTimerPeriodic)) {
    timer.expiration = timer.count;
    if (now >= timer.count) return true;
    timer.deadline_ns = after(timer.count - now);
    return false;
  }
  if (!timer.expiration)
    timer.expiration = now + timer.count;
  else if (now >= timer.expiration)
    timer.expiration = now + timer.count - (now - timer.expiration) % timer.count;
  timer.deadline_ns = after(timer.expiration - now);
  return false;
}

void Timers::message_read(unsigned sint) {
  for (Timer& timer : m_timers) {
    const bool waits = timer.untold && (timer.config & kTimerEnabled) && !(timer.config & kTimerDirect);
    if (waits && timer_sint(timer.config) == sint) look_later(timer);
  }
}

}  // namespace anykvm::core::hyperv
