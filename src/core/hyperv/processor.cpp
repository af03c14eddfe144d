#include "core/hyperv/processor.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "core/vcpu.h"
#include "core/vm.h"
#include "irqchip/apic_registers.h"
#include "x86/mmu/access.h"

namespace anykvm::core::hyperv {
namespace {

// CPU time of this thread in units of 100 ns: where it matters, the vCPU's.
u64 thread_time() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<u64>(time.tv_sec) * 10'000'000 + static_cast<u64>(time.tv_nsec) / 100;
}

// The local APIC's register that an MSR stands for.
u32 apic_register(u32 index) {
  return index == kMsrEoi ? irqchip::kApicEoi : index == kMsrIcr ? irqchip::kApicIcr : irqchip::kApicTpr;
}

bool is_debug_exit(u32 index) { return index == kMsrDebugControl || index == kMsrDebugPendingPage; }

}  // namespace

VirtualProcessor::VirtualProcessor(Vcpu& vcpu, Partition& partition) : m_vcpu(vcpu), m_partition(partition) {}

Result<> VirtualProcessor::activate_synic(bool keep_pages) {
  if (!m_vcpu.lapic()) return Error{EINVAL, "synthetic interrupts need a local APIC"};
  m_synic.activate(keep_pages);
  return {};
}

// --- MSRs ---

bool VirtualProcessor::permitted(u32 index) const {
  if (!m_features.present) return false;
  if (index >= kMsrDebugControl && index <= kMsrDebugOptions && !m_features.kernel_debugging) return false;
  return !m_enforces_cpuid || m_features.permit_msr(index);
}

std::optional<u64> VirtualProcessor::read_msr(u32 index, bool from_client) {
  if (!from_client && !permitted(index)) return std::nullopt;
  if (Partition::owns_msr(index)) return m_partition.read_msr(m_vcpu.cpu(), index);
  return read_own_msr(index, from_client);
}

std::optional<u64> VirtualProcessor::read_own_msr(u32 index, bool from_client) {
  if (Synic::owns_msr(index)) return m_synic.read_msr(index, from_client);
  if (Timers::owns_msr(index)) return m_timers.read_msr(index);
  switch (index) {
    case kMsrVpIndex:
      return vp_index();
    case kMsrVpRuntime:
      return thread_time() + m_runtime_offset;
    case kMsrTscFrequency:
      return u64{m_vcpu.guest_tsc_khz()} * 1000;
    case kMsrApicFrequency:
      return 1'000'000'000 / m_vcpu.vm().apic_bus_cycle_ns();
    case kMsrAssistPage:
      return m_assist_page;
    case kMsrIcr:
    case kMsrTpr:
      return m_vcpu.lapic() ? m_vcpu.lapic()->read_by_msr(apic_register(index)) : std::nullopt;
    default:
      return std::nullopt;
  }
}

bool VirtualProcessor::write_msr(u32 index, u64 value, bool from_client) {
  if (!from_client && !permitted(index)) return false;
  if (!Partition::owns_msr(index)) return write_own_msr(index, value, from_client);
  if (!m_partition.write_msr(m_vcpu.cpu(), index, value, from_client)) return false;
  if (!from_client) note_partition_write(index, value);
  return true;
}

// What the guest asks of the client by such a write.
void VirtualProcessor::note_partition_write(u32 index, u64 value) {
  m_exit_msr = index;
  if (index == kMsrReset && value == 1) exit_to_client(KVM_EXIT_SYSTEM_EVENT, KVM_SYSTEM_EVENT_RESET);
  if (index == kMsrCrashControl && value >> 63) exit_to_client(KVM_EXIT_SYSTEM_EVENT, KVM_SYSTEM_EVENT_CRASH);
  if (is_debug_exit(index)) exit_to_client(KVM_EXIT_HYPERV, KVM_EXIT_HYPERV_SYNDBG);
}

bool VirtualProcessor::write_own_msr(u32 index, u64 value, bool from_client) {
  if (Synic::owns_msr(index)) {
    if (!m_synic.write_msr(m_vcpu.cpu(), index, value, from_client)) return false;
    m_exit_msr = index;
    if (!from_client && Synic::exits_on_write(index)) exit_to_client(KVM_EXIT_HYPERV, KVM_EXIT_HYPERV_SYNIC);
    for (unsigned sint = 0; index == kMsrEndOfMessage && sint < kSints; ++sint) message_read(sint);
    return true;
  }
  if (Timers::owns_msr(index)) {
    const bool direct = index % 2 == 0 && (value & kTimerDirect);
    if (!m_synic.active()) return from_client && value == 0;
    if (!from_client && m_enforces_cpuid && direct && !(m_features.others & kDirectTimers)) return false;
    m_timers.write_msr(index, value, from_client);
    m_vcpu.look_at_hyperv_timers(from_client);
    return true;
  }
  switch (index) {
    case kMsrVpIndex:
      if (!from_client || value >= kMaxProcessors) return false;
      m_vp_index = static_cast<u32>(value);
      return true;
    case kMsrVpRuntime:
      m_runtime_offset = value - thread_time();
      return from_client;
    case kMsrTscFrequency:
    case kMsrApicFrequency:
      return from_client;
    case kMsrAssistPage:
      return write_assist_page(value);
    default:
      return m_vcpu.lapic() && m_vcpu.lapic()->write_by_msr(apic_register(index), value);
  }
}

// Only the word that says which EOIs can be left out (none, here) is ours; the rest of the page is the
// guest's (TLFS 7.8.7).
bool VirtualProcessor::write_assist_page(u64 value) {
  constexpr u32 kEoiNeeded = 0;
  if ((value & kPageEnabled) &&
      !x86::write_physical(m_vcpu.cpu(), page_of(value), &kEoiNeeded, sizeof kEoiNeeded))
    return false;
  m_assist_page = value;
  return true;
}

bool VirtualProcessor::hides_invariant_tsc() const {
  return (m_features.msrs & kAccessInvariantTsc) && !m_partition.shows_invariant_tsc();
}

// --- Exits ---

void VirtualProcessor::exit_to_client(u32 reason, u32 type) {
  m_exit_reason = reason;
  m_exit_type = type;
  x86::Exit exit;
  exit.reason = x86::Exit::Reason::kPlatform;
  m_vcpu.cpu().exit_after_instruction(exit);
}

bool VirtualProcessor::finish_instruction(kvm_run& run) {
  if (m_exit_reason == 0) return finish_flush(), false;
  run.exit_reason = m_exit_reason;
  if (m_exit_reason == KVM_EXIT_SYSTEM_EVENT) {
    run.system_event.type = m_exit_type;
    run.system_event.ndata = 0;
    return true;
  }
  memset(&run.hyperv, 0, sizeof run.hyperv);
  run.hyperv.type = m_exit_type;
  if (m_exit_type == KVM_EXIT_HYPERV_SYNIC) {
    auto& synic = run.hyperv.u.synic;
    synic.msr = m_exit_msr;
    synic.control = m_synic.control();
    synic.evt_page = m_synic.event_page();
    synic.msg_page = m_synic.message_page();
    return true;
  }
  const Debugger debugger = m_partition.debugger();
  auto& out = run.hyperv.u.syndbg;
  out.msr = m_exit_msr;
  out.control = debugger.control;
  out.status = debugger.status;
  out.send_page = debugger.send_page;
  out.recv_page = debugger.receive_page;
  out.pending_page = debugger.pending_page;
  return true;
}

void VirtualProcessor::resume(const kvm_run& run) {
  const bool answered = m_exit_reason == KVM_EXIT_HYPERV && m_exit_type == KVM_EXIT_HYPERV_SYNDBG &&
                        m_exit_msr == kMsrDebugControl;
  m_exit_reason = 0;
  if (answered)
    m_partition.set_debugger_status(*static_cast<const volatile __u64*>(&run.hyperv.u.syndbg.status));
}

// --- Interrupts ---

bool VirtualProcessor::send(u8 vector) {
  irqchip::Lapic* lapic = m_vcpu.lapic();
  return lapic &&
         lapic->accept(irqchip::DeliveryMode::kFixed, vector, false, true) != irqchip::Lapic::Accepted::kNo;
}

int VirtualProcessor::raise(unsigned sint) {
  irqchip::Lapic* lapic = m_vcpu.lapic();
  if (!m_synic.active() || sint >= kSints || !lapic) return -1;
  const auto vector = m_synic.vector_of(sint);
  if (!vector) return -1;
  switch (lapic->accept(irqchip::DeliveryMode::kFixed, *vector, false, true)) {
    case irqchip::Lapic::Accepted::kNo:
      return -1;
    case irqchip::Lapic::Accepted::kMerged:
      return 0;
    case irqchip::Lapic::Accepted::kYes:
      return 1;
  }
  return -1;
}

void VirtualProcessor::end_of_interrupt(u8 vector) {
  if (!m_synic.active()) return;
  for (u16 left = m_synic.sints_of(vector); left; left &= static_cast<u16>(left - 1))
    message_read(static_cast<unsigned>(__builtin_ctz(left)));
}

// The guest has dealt with what this source told it.
void VirtualProcessor::message_read(unsigned sint) {
  m_timers.message_read(sint);
  if (m_timers.has_work()) m_vcpu.look_at_hyperv_timers(true);
  if (auto* chip = m_vcpu.vm().irqchip()) chip->sint_acknowledged(vp_index(), sint);
}

// --- Timers ---

u64 VirtualProcessor::reference_time() { return m_partition.reference_time(m_vcpu.cpu()); }

// Periodic ticks that find the slot full are dropped: they would pile up.
Timers::Host::Told VirtualProcessor::tell_expiry(unsigned timer, u64 config, u64 expiration) {
  if (config & kTimerDirect) return send(timer_vector(config)) ? Told::kYes : Told::kLater;
  Message message{};
  message.type = kMessageTimerExpired;
  message.payload_size = sizeof(TimerMessage);
  const TimerMessage payload{timer, 0, expiration, reference_time()};
  memcpy(message.payload, &payload, sizeof payload);
  const unsigned sint = timer_sint(config);
  switch (m_synic.post(m_vcpu.cpu(), sint, message)) {
    case Synic::Posted::kYes:
      raise(sint);
      return Told::kYes;
    case Synic::Posted::kSlotBusy:
      if (config & kTimerPeriodic) return Told::kYes;
      m_synic.mark_waiting(m_vcpu.cpu(), sint);
      return Told::kLater;
    case Synic::Posted::kNo:
      break;
  }
  return Told::kLater;
}

}  // namespace anykvm::core::hyperv
