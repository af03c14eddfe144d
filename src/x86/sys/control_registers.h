#pragma once
// Writes to CR0, CR3, CR4, CR8, EFER and XCR0 with the manuals' checks and consequences (SDM 3A 2.5, 4.10.4).
// Owner: nobody; functions over a Cpu. Only the vCPU's thread.

#include "x86/cpu.h"
#include "x86/fault.h"

namespace anykvm::x86 {

// The bits that a hypervisor may leave to its guest because they change neither paging nor the mode (SEEDS
// X4). The only definition: writes that change no other bit take the short way below, and nested guests may
// own no other bits.
inline constexpr u64 kCr0PossiblyGuestOwned = kCr0Ts;
inline constexpr u64 kCr4PossiblyGuestOwned =
    kCr4Pvi | kCr4De | kCr4Pce | kCr4Osfxsr | kCr4Osxmmexcpt | kCr4Tsd | kCr4Fsgsbase;

// By the guest: #GP(0) where the manual says so, mode switch, PDPTE loads, TLB flushes, mode_changed().
Guest<void> write_cr0(Cpu& cpu, u64 value);
Guest<void> write_cr3(Cpu& cpu, u64 value);
Guest<void> write_cr4(Cpu& cpu, u64 value);
Guest<void> write_efer(Cpu& cpu, u64 value);
Guest<void> write_xcr0(Cpu& cpu, u64 value);

// The values that MOV to CR0 and CR4 accept in the present state, without writing them. `value` of CR0 as the
// CPU would keep it (reserved bits dropped, ET set).
u64 effective_cr0(u64 value);
bool valid_cr0_change(const CpuState& state, u64 value);
bool valid_cr4_change(const CpuModel& model, const CpuState& state, u64 value);

// By the client (KVM_SET_SREGS): could a CPU of this model be in such a state? The caller sets the fields
// itself and then calls Cpu::state_replaced().
bool valid_sregs(const CpuModel& model, const CpuState& proposed);

}  // namespace anykvm::x86
