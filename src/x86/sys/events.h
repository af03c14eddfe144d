#pragma once
// Delivery of exceptions, interrupts and NMIs through the IVT or IDT, with double and triple faults (SDM 3A
// chapter 6). Owner: nobody; functions over a Cpu. Only the vCPU's thread.

#include "x86/cpu.h"
#include "x86/fault.h"

namespace anykvm::x86 {

enum class EventKind : u8 {
  kFault,     // exception of an instruction: RIP is the instruction's
  kTrap,      // exception after an instruction (#DB single step, INT3, INTO)
  kExternal,  // interrupt from outside, NMI
  kSoftware,  // INT n: gate DPL is checked against CPL
};

// Delivers one event now; a fault during delivery is combined by the rules of SDM 3A table 6-5 and delivered
// instead. A triple fault sets events.triple_fault and mp_state stays. Returns a stop only for the client
// (MMIO in a table).
Guest<void> deliver_fault(Cpu& cpu, const GuestFault& fault);
Guest<void> deliver_interrupt(Cpu& cpu, u8 vector, EventKind kind);

// For INT n, INT3, INTO and INT1, with RIP behind them: as deliver_interrupt, but a fault during delivery is
// returned, since it is the instruction's. `kSoftware` for INT n; `kTrap` for the others.
Guest<void> raise_interrupt(Cpu& cpu, u8 vector, EventKind kind);

// INT n that CR4.VME redirects to the virtual-8086 task's own IVT (SDM 3B 20.3.3).
Guest<void> deliver_to_ivt(Cpu& cpu, u8 vector, u16 flags_image);

// What `events` holds as injected, in the order of the manual (SDM 3A table 6-2). NMIs come this way:
// events.nmi.masked is set.
Guest<void> deliver_injected(Cpu& cpu);

// Loads `fault.payload` into CR2 or DR6 as delivery does (also for exceptions that the client injects).
void apply_payload(CpuState& state, const GuestFault& fault);

}  // namespace anykvm::x86
