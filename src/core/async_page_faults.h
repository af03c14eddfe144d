#pragma once
// Asynchronous page faults: a guest that wants it hears of pages that the host has to fetch, does something
// else, and hears again when they are there (Linux: Documentation/virt/kvm/x86/msr.rst, MSR_KVM_ASYNC_PF_*).
// One vCPU's part. Owner: Vcpu. Only the vCPU's thread, with guest memory to be used (Cpu::run() or
// Cpu::visit_memory()).

#include <functional>
#include <memory>
#include <optional>

#include "core/page_fetcher.h"
#include "irqchip/lapic.h"
#include "x86/cpu.h"

namespace anykvm::core {

class AsyncPageFaults {
 public:
  // `arrived`: deliver() is to be called. Any thread.
  AsyncPageFaults(u32 cpu_number, std::function<void()> arrived);
  ~AsyncPageFaults();
  AsyncPageFaults(const AsyncPageFaults&) = delete;
  AsyncPageFaults& operator=(const AsyncPageFaults&) = delete;

  static constexpr u32 kMsrEnable = 0x4b564d02, kMsrInterrupt = 0x4b564d06, kMsrAcknowledge = 0x4b564d07;
  static bool enabled(const x86::CpuState& state);

  // Values were checked. Null: the client has the interrupt controller. False: not accepted then.
  bool write_msr(x86::Cpu& cpu, irqchip::Lapic* lapic, u32 index, u64 value);

  // x86::Platform::await_page().
  std::optional<u32> begin(x86::Cpu& cpu, PageFetcher& fetcher, const u8* host);

  // Pages have arrived that the guest has not been told of.
  bool waits_for_guest() const;
  // Tells it of one, if it is done with the last.
  void deliver(x86::Cpu& cpu, irqchip::Lapic& lapic);

  // INIT, or the guest does not want it any more: nothing that is under way will be delivered.
  void reset(x86::Cpu& cpu);

 private:
  struct Mailbox;

  u32 next_token();

  const u32 m_cpu_number;
  u32 m_next_id = 1;
  std::shared_ptr<Mailbox> m_mailbox;
};

}  // namespace anykvm::core
