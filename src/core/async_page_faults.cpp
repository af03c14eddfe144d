#include "core/async_page_faults.h"

#include <deque>
#include <mutex>

#include "base/bits.h"
#include "x86/mmu/access.h"

namespace anykvm::core {
namespace {

// Linux: arch/x86/include/uapi/asm/kvm_para.h.
struct Record {
  u32 flags;  // kNotPresent, until the guest clears it
  u32 token;  // of a page that is there, until the guest clears it
};

constexpr u32 kNotPresent = 1;
constexpr u64 kEnabled = bit(0), kAtCpl0 = bit(1), kByInterrupt = bit(3);
// Who waited may have been told on another machine: everybody is to look again.
constexpr u32 kWakeAll = ~u32{0};
constexpr unsigned kMostAtOnce = 64;
constexpr unsigned kCpuNumberBits = 12;

Gpa record_of(const x86::Cpu& cpu) { return Gpa(cpu.state().msrs.kvm_async_pf_en & ~low_bits(6)); }

}  // namespace

// Shared with threads that fetch pages, which may outlive the vCPU.
struct AsyncPageFaults::Mailbox {
  std::mutex mutex;
  std::function<void()> announce;  // mutex; none: the vCPU is gone
  std::deque<u32> arrived;         // mutex
  unsigned awaited = 0;            // mutex; with those that have arrived
  u64 generation = 0;              // mutex; goes up when what is under way is forgotten

  void arrive(u32 token, u64 begun_in) {
    std::lock_guard lock(mutex);
    if (begun_in != generation) return;
    arrived.push_back(token);
    if (announce) announce();
  }
};

AsyncPageFaults::AsyncPageFaults(u32 cpu_number, std::function<void()> arrived)
    : m_cpu_number(cpu_number), m_mailbox(std::make_shared<Mailbox>()) {
  m_mailbox->announce = std::move(arrived);
}

AsyncPageFaults::~AsyncPageFaults() {
  std::lock_guard lock(m_mailbox->mutex);
  m_mailbox->announce = nullptr;
}

bool AsyncPageFaults::enabled(const x86::CpuState& state) {
  constexpr u64 kBoth = kEnabled | kByInterrupt;
  return (state.msrs.kvm_async_pf_en & kBoth) == kBoth;
}

bool AsyncPageFaults::write_msr(x86::Cpu& cpu, irqchip::Lapic* lapic, u32 index, u64 value) {
  x86::MsrState& msrs = cpu.state().msrs;
  if (index == kMsrAcknowledge) {
    if (lapic && (value & 1)) deliver(cpu, *lapic);
    return true;
  }
  if (!lapic) return index == kMsrEnable && !value;
  if (index == kMsrInterrupt) {
    msrs.kvm_async_pf_int = value;
    return true;
  }
  msrs.kvm_async_pf_en = value;
  if (!enabled(cpu.state())) {
    reset(cpu);
    msrs.kvm_async_pf_en = value;
    return true;
  }
  cpu.tell_absent_pages(true, value & kAtCpl0);
  std::lock_guard lock(m_mailbox->mutex);
  if (!m_mailbox->arrived.empty()) return true;
  m_mailbox->arrived.push_back(kWakeAll);
  ++m_mailbox->awaited;
  m_mailbox->announce();
  return true;
}

// Never 0, which in the record is none, nor kWakeAll: CPU numbers are smaller.
u32 AsyncPageFaults::next_token() {
  if (m_next_id << kCpuNumberBits == 0) m_next_id = 1;
  return m_next_id++ << kCpuNumberBits | m_cpu_number;
}

// A guest that has not cleared the flags is still at the last fault's.
std::optional<u32> AsyncPageFaults::begin(x86::Cpu& cpu, PageFetcher& fetcher, const u8* host) {
  u32 flags = 0;
  if (!enabled(cpu.state()) || !x86::read_physical(cpu, record_of(cpu), &flags, sizeof flags) || flags)
    return std::nullopt;
  u64 generation = 0;
  {
    std::lock_guard lock(m_mailbox->mutex);
    if (m_mailbox->awaited >= kMostAtOnce) return std::nullopt;
    generation = m_mailbox->generation;
    ++m_mailbox->awaited;
  }
  const u32 token = next_token();
  flags = kNotPresent;
  const bool fetched =
      x86::write_physical(cpu, record_of(cpu), &flags, sizeof flags) &&
      fetcher.fetch(host, [mailbox = m_mailbox, token, generation] { mailbox->arrive(token, generation); });
  if (fetched) return token;
  flags = 0;
  x86::write_physical(cpu, record_of(cpu), &flags, sizeof flags);
  std::lock_guard lock(m_mailbox->mutex);
  --m_mailbox->awaited;
  return std::nullopt;
}

bool AsyncPageFaults::waits_for_guest() const {
  std::lock_guard lock(m_mailbox->mutex);
  return !m_mailbox->arrived.empty();
}

void AsyncPageFaults::deliver(x86::Cpu& cpu, irqchip::Lapic& lapic) {
  const Gpa token_at = record_of(cpu) + offsetof(Record, token);
  u32 before = 0;
  if (!enabled(cpu.state()) || !lapic.software_enabled()) return;
  if (!x86::read_physical(cpu, token_at, &before, sizeof before) || before) return;
  u32 token = 0;
  {
    std::lock_guard lock(m_mailbox->mutex);
    if (m_mailbox->arrived.empty()) return;
    token = m_mailbox->arrived.front();
    m_mailbox->arrived.pop_front();
    --m_mailbox->awaited;
  }
  if (!x86::write_physical(cpu, token_at, &token, sizeof token)) return;
  const auto vector = static_cast<u8>(cpu.state().msrs.kvm_async_pf_int);
  lapic.accept(irqchip::DeliveryMode::kFixed, vector, false, true);
}

void AsyncPageFaults::reset(x86::Cpu& cpu) {
  cpu.state().msrs.kvm_async_pf_en = 0;
  cpu.tell_absent_pages(false, false);
  std::lock_guard lock(m_mailbox->mutex);
  m_mailbox->arrived.clear();
  m_mailbox->awaited = 0;
  ++m_mailbox->generation;
}

}  // namespace anykvm::core
