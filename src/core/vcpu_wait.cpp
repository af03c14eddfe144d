// A vCPU that has nothing to do: halted, or waiting for INIT or SIPI (SEEDS G1).
#include <algorithm>

#include "base/optimizations.h"
#include "core/vcpu.h"
#include "core/vm.h"

namespace anykvm::core {
namespace {

// Crossing CPUs costs more than this in a virtual machine; a wake-up that comes while spinning saves it. The
// window grows while wake-ups come soon and closes when they do not, so an idle guest does not burn CPU.
constexpr u64 kSpinStartNs = 5'000;
constexpr u64 kSpinLimitNs = 40'000;
constexpr u64 kSoonNs = 60'000;

u64 adapted_spin(u64 window, u64 waited) {
  if (waited > kSoonNs) return window / 4 < 1000 ? 0 : window / 4;
  return std::clamp(window * 2, kSpinStartNs, kSpinLimitNs);
}

}  // namespace

// Any thread: the timer thread's, too.
void Vcpu::expire_timers() {
  const u64 deadline = next_deadline_ns();
  if (deadline == kNever) return;
  const u64 now = monotonic_ns();
  if (now < deadline) return;
  m_lapic->expire(now);
  // These write to guest memory, which is for the vCPU's own thread.
  if (now >= m_hyperv.deadline_ns()) request(kRequestHypervTimers);
  if (now >= m_xen.deadline_ns()) request(kRequestXenTimers);
}

// HLT ends with an interrupt that can be taken or an NMI (SDM 2A, HLT).
bool Vcpu::runnable_after_halt() {
  if (m_unhalted.load()) return true;
  const x86::Events& events = state().events;
  if (!state().svm.gif) return false;
  if (m_cpu->smi_waits() && !state().smm.active) return true;
  if (m_cpu->nmi_queued() && !events.nmi.masked) return true;
  if (events.nmi.injected || events.exception.injected || events.interrupt.injected) return true;
  if (events.nmi.pending && !events.nmi.masked) return true;
  return (m_cpu->interrupts_enabled() && interrupt_ready()) || m_cpu->virtual_interrupt_ready();
}

bool Vcpu::wake_condition() {
  if (m_signalled.load() || m_requests.load()) return true;
  return state().mp_state == x86::MpState::kHalted && runnable_after_halt();
}

bool Vcpu::spin_until(u64 end) {
  while (monotonic_ns() < end) {
    expire_timers();
    if (wake_condition()) return true;
    for (int pause = 0; pause < 20; ++pause) __builtin_ia32_pause();
  }
  return false;
}

void Vcpu::wait(RunSignals& signals) {
  ++m_cpu->counts().halts;
  expire_timers();
  if (wake_condition()) return;
  const u64 start = monotonic_ns();
  const bool may_spin = optimizations().polling && (state().msrs.kvm_poll_control & 1);
  const u64 spin_ns = std::min(m_spin_ns, m_vm.halt_poll_ns());
  if (may_spin && spin_ns && spin_until(start + spin_ns)) {
    ++m_cpu->counts().halts_spun;
  } else {
    signals.before_sleep();
    m_waiter.wait([this] { return wake_condition(); }, next_deadline_ns());
    expire_timers();
  }
  m_spin_ns = adapted_spin(m_spin_ns, monotonic_ns() - start);
}

}  // namespace anykvm::core
