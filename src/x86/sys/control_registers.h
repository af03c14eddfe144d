#pragma once
// Writes to CR0, CR3, CR4, CR8, EFER and XCR0 with the manuals' checks and consequences (SDM 3A 2.5, 4.10.4).
// Owner: nobody; functions over a Cpu. Only the vCPU's thread.

#include "x86/cpu.h"
#include "x86/fault.h"

namespace anykvm::x86 {

// By the guest: #GP(0) where the manual says so, mode switch, PDPTE loads, TLB flushes, mode_changed().
Guest<void> write_cr0(Cpu& cpu, u64 value);
Guest<void> write_cr3(Cpu& cpu, u64 value);
Guest<void> write_cr4(Cpu& cpu, u64 value);
Guest<void> write_efer(Cpu& cpu, u64 value);
Guest<void> write_xcr0(Cpu& cpu, u64 value);

// By the client (KVM_SET_SREGS): could a CPU of this model be in such a state? The caller sets the fields itself and
// then calls Cpu::state_replaced().
bool valid_sregs(const CpuModel& model, const CpuState& proposed);

}  // namespace anykvm::x86
