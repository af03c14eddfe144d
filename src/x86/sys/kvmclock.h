#pragma once
// KVM's paravirtual clock in guest memory (Linux: Documentation/virt/kvm/x86/msr.rst,
// MSR_KVM_SYSTEM_TIME_NEW). Owner: nobody; functions over a Cpu. Only the vCPU's thread.

#include "x86/cpu.h"

namespace anykvm::x86 {

// How pvclock turns TSC ticks into nanoseconds: ((ticks shifted left by `shift`) * mul) >> 32.
struct PvclockScale {
  u32 mul = 0;
  i8 shift = 0;
};
PvclockScale pvclock_scale(u32 tsc_khz);

// Writes this CPU's time info where the guest asked for it, if it did. Call it after the kvmclock, the TSC
// offset or the TSC frequency changed, and once before the first run after the client set the state.
void refresh_kvmclock(Cpu& cpu);

// Writes the wall-clock time at which the kvmclock was 0.
void write_kvm_wall_clock(Cpu& cpu, Gpa address);

}  // namespace anykvm::x86
