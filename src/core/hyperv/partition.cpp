#include "core/hyperv/partition.h"

#include <errno.h>
#include <stddef.h>
#include <x86intrin.h>

#include "core/hyperv/processor.h"
#include "x86/mmu/access.h"

namespace anykvm::core::hyperv {
namespace {

constexpr u64 kTicksPerSecond = 10'000'000;  // of 100 ns
constexpr u64 kCrashNotify = u64{1} << 63;

u64 high_product(u64 a, u64 b) { return static_cast<u64>((static_cast<unsigned __int128>(a) * b) >> 64); }

// 2^64 * ticks / cycles. 0: it has no 64 bits.
u64 scale_of(u64 tsc_khz) {
  const u64 hertz = tsc_khz * 1000;
  if (hertz <= kTicksPerSecond) return 0;
  return static_cast<u64>((static_cast<unsigned __int128>(kTicksPerSecond) << 64) / hertz);
}

// The guest's TSC and the VM's clock, at one moment.
struct Moment {
  u64 guest_tsc, clock_ns;
};

Moment now(x86::Cpu& cpu) {
  const u64 host_tsc = __rdtsc();
  const x86::CpuState& state = cpu.state();
  const auto scaled = static_cast<unsigned __int128>(host_tsc) * state.tsc_ratio >> 32;
  return {static_cast<u64>(scaled) + state.tsc_offset, cpu.platform().kvmclock_ns(host_tsc)};
}

}  // namespace

bool Partition::owns_msr(u32 index) {
  switch (index) {
    case kMsrGuestOsId:
    case kMsrHypercall:
    case kMsrReset:
    case kMsrReferenceCounter:
    case kMsrReferenceTsc:
    case kMsrInvariantTscControl:
      return true;
    default:
      return (index >= kMsrDebugControl && index <= kMsrDebugPendingPage) || index == kMsrDebugOptions ||
             (index >= kMsrCrash0 && index <= kMsrTscEmulationStatus);
  }
}

// Those that only keep what is written.
u64* Partition::plain_msr(u32 index) {
  if (index >= kMsrCrash0 && index <= kMsrCrash4) return &m_crash[index - kMsrCrash0];
  switch (index) {
    case kMsrReenlightenmentControl:
      return &m_reenlightenment;
    case kMsrTscEmulationControl:
      return &m_tsc_emulation;
    case kMsrTscEmulationStatus:
      return &m_tsc_emulation_status;
    case kMsrDebugControl:
      return &m_debugger.control;
    case kMsrDebugStatus:
      return &m_debugger.status;
    case kMsrDebugSendPage:
      return &m_debugger.send_page;
    case kMsrDebugReceivePage:
      return &m_debugger.receive_page;
    case kMsrDebugPendingPage:
      return &m_debugger.pending_page;
    case kMsrDebugOptions:
      return &m_debugger.options;
    default:
      return nullptr;
  }
}

std::optional<u64> Partition::read_msr(x86::Cpu& cpu, u32 index) {
  if (index == kMsrReferenceCounter) return reference_time(cpu);
  std::lock_guard lock(m_mutex);
  switch (index) {
    case kMsrGuestOsId:
      return m_guest_os_id.load();
    case kMsrHypercall:
      return m_hypercall;
    case kMsrReset:
      return 0;
    case kMsrReferenceTsc:
      return m_reference_tsc;
    case kMsrInvariantTscControl:
      return m_invariant_tsc_control.load();
    case kMsrCrashControl:
      return m_crash_control;
    default:
      break;
  }
  const u64* plain = plain_msr(index);
  return plain ? std::optional(*plain) : std::nullopt;
}

bool Partition::write_msr(x86::Cpu& cpu, u32 index, u64 value, bool from_client) {
  std::lock_guard lock(m_mutex);
  switch (index) {
    case kMsrGuestOsId:
      m_guest_os_id = value;
      if (!value) m_hypercall &= ~kPageEnabled;
      return true;
    case kMsrHypercall:
      return write_hypercall_page(cpu, value);
    case kMsrReset:
      return true;
    case kMsrReferenceCounter:
      return from_client;
    case kMsrReferenceTsc:
      set_tsc_page(value, from_client);
      if (!from_client) fill_tsc_page(cpu);
      return true;
    case kMsrInvariantTscControl:
      // Once the guest has seen the bit in CPUID it stays.
      if (value & ~u64{1} || (!from_client && !value && m_invariant_tsc_control)) return false;
      m_invariant_tsc_control = value;
      return true;
    case kMsrCrashControl:
      if (from_client) m_crash_control = value & kCrashNotify;
      return true;
    case kMsrTscEmulationStatus:
      if (value && !from_client) return false;
      break;
    default:
      break;
  }
  u64* plain = plain_msr(index);
  if (plain) *plain = value;
  return plain;
}

// --- Hypercalls ---

// The instruction and RET. Before the guest has said who it is, the page cannot be had.
bool Partition::write_hypercall_page(x86::Cpu& cpu, u64 value) {
  if (!m_guest_os_id) return true;
  if (value & kPageEnabled) {
    const u8 last = cpu.model().intel() ? 0xc1 : 0xd9;                // VMCALL, VMMCALL
    const u8 code[] = {0x0d, 0, 0, 0, 0x80, 0x0f, 0x01, last, 0xc3};  // OR EAX, 80000000H first
    const unsigned skipped = m_beside_xen ? 0 : 5;
    if (!x86::write_physical(cpu, page_of(value), code + skipped, sizeof code - skipped)) return false;
  }
  m_hypercall = value;
  return true;
}

// --- Time ---

u64 Partition::reference_time(x86::Cpu& cpu) {
  const Moment moment = now(cpu);
  std::lock_guard lock(m_mutex);
  if (m_tsc_page != TscPage::kValid) return moment.clock_ns / 100;
  return high_product(moment.guest_tsc, m_shown.scale) + static_cast<u64>(m_shown.offset);
}

void Partition::set_tsc_page(u64 value, bool from_client) {
  m_reference_tsc = value;
  m_tsc_page = !(value & kPageEnabled) ? TscPage::kOff
               : from_client           ? TscPage::kClientChanged
                                       : TscPage::kGuestChanged;
  m_tsc_page_stale = m_tsc_page != TscPage::kOff;
}

// A guest that has the TSC emulated after a migration (TLFS 12.6) relies on the page until it says otherwise.
void Partition::clock_changed() {
  std::lock_guard lock(m_mutex);
  if (m_tsc_page != TscPage::kValid || m_tsc_emulation) return;
  m_tsc_page = TscPage::kClientChanged;
  m_tsc_page_stale = true;
}

void Partition::refresh_tsc_page(x86::Cpu& cpu) {
  std::lock_guard lock(m_mutex);
  fill_tsc_page(cpu);
}

void Partition::fill_tsc_page(x86::Cpu& cpu) {
  if (!m_tsc_page_stale.exchange(false)) return;
  m_tsc_page = store_tsc_page(cpu, page_of(m_reference_tsc)) ? TscPage::kValid : TscPage::kBroken;
}

// Guests on other CPUs read at the same time: sequence 0 sends them to the MSR while the rest changes.
bool Partition::store_tsc_page(x86::Cpu& cpu, Gpa address) {
  ReferenceTscPage page{};
  if (!x86::read_physical(cpu, address, &page, sizeof page)) return false;
  if (page.sequence && m_tsc_emulation && m_tsc_page == TscPage::kClientChanged) return m_shown = page, true;
  const u32 before = page.sequence;
  page.sequence = 0;
  if (!x86::write_physical(cpu, address, &page.sequence, sizeof page.sequence)) return false;
  const Moment moment = now(cpu);
  page.scale = scale_of(cpu.platform().tsc_khz());
  if (!page.scale) return false;
  page.offset = static_cast<i64>(moment.clock_ns / 100 - high_product(moment.guest_tsc, page.scale));
  std::atomic_thread_fence(std::memory_order_release);
  if (!x86::write_physical(cpu, address, &page, sizeof page)) return false;
  std::atomic_thread_fence(std::memory_order_release);
  // All ones has a meaning of its own as well (TLFS 12.7.2).
  page.sequence = before + 1;
  if (page.sequence == 0 || page.sequence == ~u32{0}) page.sequence = 1;
  if (!x86::write_physical(cpu, address, &page.sequence, sizeof page.sequence)) return false;
  m_shown = page;
  return true;
}

// --- The debugger ---

Debugger Partition::debugger() {
  std::lock_guard lock(m_mutex);
  return m_debugger;
}

void Partition::set_debugger_status(u64 status) {
  std::lock_guard lock(m_mutex);
  m_debugger.status = status;
}

// --- Connections ---

Result<> Partition::change_event(const kvm_hyperv_eventfd& request) {
  if (request.flags & ~u32{KVM_HYPERV_EVENTFD_DEASSIGN}) return Error{EINVAL, "unknown flags"};
  if (request.conn_id & ~u32{KVM_HYPERV_CONN_ID_MASK}) return Error{EINVAL, "no connection has that number"};
  if (request.flags & KVM_HYPERV_EVENTFD_DEASSIGN) {
    std::lock_guard lock(m_mutex);
    if (m_events.erase(request.conn_id) == 0) return Error{ENOENT, "the connection has no eventfd"};
    return {};
  }
  EventFd event = TRY(EventFd::open(request.fd));
  std::lock_guard lock(m_mutex);
  if (!m_events.try_emplace(request.conn_id, std::move(event)).second)
    return Error{EEXIST, "the connection has an eventfd"};
  return {};
}

bool Partition::signal_event(u32 connection) {
  std::lock_guard lock(m_mutex);
  auto event = m_events.find(connection);
  if (event == m_events.end()) return false;
  event->second.signal();
  return true;
}

// --- Processors ---

u32 Partition::add(VirtualProcessor& processor) {
  std::lock_guard lock(m_mutex);
  const unsigned number = count();
  m_processors[number].store(&processor, std::memory_order_release);
  m_count.store(number + 1, std::memory_order_release);
  return number;
}

VirtualProcessor* Partition::find(u32 vp_index) const {
  if (vp_index < count() && at(vp_index).vp_index() == vp_index) return &at(vp_index);
  for (unsigned number = 0; number < count(); ++number)
    if (at(number).vp_index() == vp_index) return &at(number);
  return nullptr;
}

}  // namespace anykvm::core::hyperv
