#include "core/steal_time.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <atomic>

#include "base/guarded_memory.h"
#include "core/host_tsc.h"
#include "x86/machine.h"
#include "x86/mmu/access.h"

namespace anykvm::core {
namespace {

// Linux: arch/x86/include/uapi/asm/kvm_para.h.
struct Record {
  u64 steal;    // ns
  u32 version;  // odd while the rest changes
  u32 flags;
  u8 preempted;  // kPreempted, kFlushTlb
  u8 padding[47];
};
static_assert(sizeof(Record) == 64);

constexpr u8 kPreempted = 1, kFlushTlb = 2;
constexpr u64 kAddress = ~u64{0x3f};
// The kernel is asked at most so often: it takes some microseconds.
constexpr u64 kIntervalUs = 100;

Gpa address_of(const x86::Cpu& cpu) { return Gpa(cpu.state().msrs.kvm_steal_time & kAddress); }

u8* preempted_byte(x86::Cpu& cpu) {
  const Gpa address = address_of(cpu) + offsetof(Record, preempted);
  u8 byte = 0;
  // Written as it is first: for the dirty log and for code on the page.
  if (!x86::read_physical(cpu, address, &byte, sizeof byte) ||
      !x86::write_physical(cpu, address, &byte, sizeof byte))
    return nullptr;
  return cpu.machine().memory().host(address, sizeof byte);
}

}  // namespace

u64 run_delay_ns() {
  const int fd = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  char text[96] = {};
  const ssize_t size = read(fd, text, sizeof text - 1);
  close(fd);
  unsigned long long ran = 0, waited = 0;
  return size > 0 && sscanf(text, "%llu %llu", &ran, &waited) == 2 ? waited : 0;
}

void StealTime::running(x86::Cpu& cpu) {
  if (u8* preempted = preempted_byte(cpu)) {
    const auto before = guarded_update(preempted, 1, [](u64) { return u64{0}; });
    if (before.value_or(0) & kFlushTlb) cpu.flush_tlb();
  }
  if (host_tsc() < m_next_look) return;
  m_next_look = host_tsc() + host_tsc_khz() * kIntervalUs / 1000;
  Record record{};
  const Gpa address = address_of(cpu);
  if (!x86::read_physical(cpu, address, &record, sizeof record)) return;
  const u64 delay = run_delay_ns();
  record.steal += delay > m_last_delay_ns ? delay - m_last_delay_ns : 0;
  m_last_delay_ns = delay;
  const u32 odd = (record.version + 1) | 1, even = odd + 1;
  if (!x86::write_physical(cpu, address + offsetof(Record, version), &odd, sizeof odd)) return;
  std::atomic_thread_fence(std::memory_order_release);
  x86::write_physical(cpu, address, &record.steal, sizeof record.steal);
  std::atomic_thread_fence(std::memory_order_release);
  x86::write_physical(cpu, address + offsetof(Record, version), &even, sizeof even);
}

void StealTime::stopped(x86::Cpu& cpu) {
  u8* preempted = preempted_byte(cpu);
  if (preempted) guarded_update(preempted, 1, [](u64 value) { return value | kPreempted; });
}

}  // namespace anykvm::core
