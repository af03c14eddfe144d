#pragma once
// The local APIC through its MMIO page or its MSRs, whichever mode it is in; and the other CPUs. Any CPU.

#include "cpu.h"

namespace bare {

enum ApicRegister : u32 {
  kApicId = 0x20,
  kApicVersion = 0x30,
  kApicTpr = 0x80,
  kApicPpr = 0xa0,
  kApicEoi = 0xb0,
  kApicLdr = 0xd0,
  kApicDfr = 0xe0,
  kApicSvr = 0xf0,
  kApicIsr = 0x100,
  kApicTmr = 0x180,
  kApicIrr = 0x200,
  kApicEsr = 0x280,
  kApicIcr = 0x300,
  kApicIcrHigh = 0x310,
  kApicLvtTimer = 0x320,
  kApicLint0 = 0x350,
  kApicLint1 = 0x360,
  kApicLvtError = 0x370,
  kApicTimerInitial = 0x380,
  kApicTimerCurrent = 0x390,
  kApicTimerDivide = 0x3e0,
};
inline constexpr u32 kIcrSelf = 1 << 18, kIcrAll = 2 << 18, kIcrOthers = 3 << 18, kIcrAssert = 1 << 14,
                     kIcrNmi = 4 << 8, kIcrInit = 5 << 8, kIcrStartup = 6 << 8, kLvtMasked = 1 << 16,
                     kTimerPeriodic = 1 << 17, kTimerDeadline = 2 << 17;

bool x2apic_mode();
u32 apic_read(ApicRegister index);
void apic_write(ApicRegister index, u32 value);
void send_ipi(u32 destination, u32 low);
u32 own_apic_id();

// Software-enables this CPU's APIC, everything masked. PICs are masked too.
void init_apic();
// From x2APIC mode or off, back to xAPIC mode.
void reset_apic_mode();
void enter_x2apic_mode();

// Starts the other CPUs and waits until there are `expected` in all.
void start_cpus(unsigned expected);
unsigned cpu_count();
// Runs function(argument) on `cpu` (1 and up), which sleeps otherwise, with interrupts off; returns at once.
void start_on(unsigned cpu, void (*function)(void*), void* argument);
void wait_for(unsigned cpu);
template <class Body>
void start_on(unsigned cpu, Body& body) {
  start_on(
      cpu, [](void* b) { (*static_cast<Body*>(b))(); }, &body);
}

}  // namespace bare
