#pragma once
// The record in which a guest reads how long its vCPU waited for a host CPU, and whether it runs now (Linux:
// Documentation/virt/kvm/x86/msr.rst, MSR_KVM_STEAL_TIME). Owner: Vcpu. Only the vCPU's thread, with guest
// memory to be used (Cpu::run() or Cpu::visit_memory()).

#include "base/types.h"
#include "x86/cpu.h"

namespace anykvm::core {

// How long this thread was ready to run and did not.
u64 run_delay_ns();

class StealTime {
 public:
  static bool enabled(const x86::CpuState& state) { return state.msrs.kvm_steal_time & 1; }

  // Guest code is about to run: the record is brought up to date, and a TLB flush that other vCPUs asked for
  // meanwhile is done.
  void running(x86::Cpu& cpu);
  // It does not run any more: others need not wait for it.
  void stopped(x86::Cpu& cpu);

 private:
  u64 m_last_delay_ns = 0;  // what the host's kernel said last
  u64 m_next_look = 0;      // host TSC
};

}  // namespace anykvm::core
