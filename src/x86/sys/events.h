#pragma once
// Delivery of exceptions, interrupts and NMIs through the IVT or IDT, with double and triple faults (SDM 3A chapter 6).
// Owner: nobody; functions over a Cpu. Only the vCPU's thread.

#include "x86/cpu.h"
#include "x86/fault.h"

namespace anykvm::x86 {

enum class EventKind : u8 {
  kFault,          // exception of an instruction: RIP is the instruction's
  kTrap,           // exception after an instruction (#DB single step, INT3, INTO)
  kExternal,       // interrupt from outside, NMI
  kSoftware,       // INT n: gate DPL is checked against CPL
};

// Delivers one event now; a fault during delivery is combined by the rules of SDM 3A table 6-5 and delivered instead.
// A triple fault sets events.triple_fault and mp_state stays. Returns a stop only for the client (MMIO in a table).
Guest<void> deliver_fault(Cpu& cpu, const GuestFault& fault);
Guest<void> deliver_interrupt(Cpu& cpu, u8 vector, EventKind kind);

// What `events` holds as injected, in the order of the manual (SDM 3A table 6-2).
Guest<void> deliver_injected(Cpu& cpu);

// Loads `fault.payload` into CR2 or DR6 as delivery does (also for exceptions that the client injects).
void apply_payload(CpuState& state, const GuestFault& fault);

}  // namespace anykvm::x86
