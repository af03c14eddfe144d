#pragma once
// The bit of guest memory by which a guest that clears it ends an interrupt without asking its local APIC
// (Linux: Documentation/virt/kvm/x86/msr.rst, MSR_KVM_PV_EOI_EN). Owner: Vcpu. Only the vCPU's thread, with
// guest memory to be used (Cpu::run() or Cpu::visit_memory()).

#include <optional>

#include "base/types.h"
#include "x86/cpu.h"

namespace anykvm::core {

class PvEoi {
 public:
  static bool enabled(const x86::CpuState& state) { return state.msrs.kvm_pv_eoi & 1; }

  // The guest may end the interrupt in service by clearing the bit, which is set now.
  void offer(x86::Cpu& cpu);
  bool offered() const { return m_offered.has_value(); }
  // The offer ends. True: the guest has taken it, so the interrupt's service is over.
  bool withdraw(x86::Cpu& cpu);

 private:
  std::optional<Gpa> m_offered;  // where the bit is
};

}  // namespace anykvm::core
