#pragma once
// System-management mode: entry by an SMI, and RSM (SDM 3C chapter 32, APM 2 chapter 10). What the CPU saves
// in SMRAM is laid out as AMD's CPUs do it, in the 64-bit form if the model has long mode, else in the form
// that the P6 shares. Owner: nobody; functions over a Cpu. Only the vCPU's thread, inside Cpu::run().

#include "x86/cpu.h"

namespace anykvm::x86 {

// Afterwards the CPU stands at the handler. SMRAM that is not there shuts it down.
void enter_smm(Cpu& cpu);
// RSM. False: the saved state is one that no CPU can be in, which shuts it down.
bool leave_smm(Cpu& cpu);

}  // namespace anykvm::x86
