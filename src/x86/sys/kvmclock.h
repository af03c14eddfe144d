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

// The record that guests read the time from; Linux has it in arch/x86/include/asm/pvclock-abi.h, which is not
// exported.
struct PvclockRecord {
  u32 version;  // odd while the rest changes
  u32 pad0;
  u64 tsc_timestamp;
  u64 system_time;
  u32 tsc_to_system_mul;
  i8 tsc_shift;
  u8 flags;
  u8 pad[2];
};
static_assert(sizeof(PvclockRecord) == 32);
// This CPU's, now; but for the version.
PvclockRecord pvclock_record(Cpu& cpu);

// Writes this CPU's time info where the guest asked for it, if it did. Call it after the kvmclock, the TSC
// offset or the TSC frequency changed, and once before the first run after the client set the state.
void refresh_kvmclock(Cpu& cpu);

// Tells the guest that it was stopped, so that its watchdogs keep calm. False: it has no clock.
bool mark_guest_stopped(Cpu& cpu);

// Writes the wall-clock time at which the kvmclock was 0.
void write_kvm_wall_clock(Cpu& cpu, Gpa address);

}  // namespace anykvm::x86
