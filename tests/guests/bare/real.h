#pragma once
// An excursion from 64-bit mode to real mode: runs 16-bit code until it returns. CPU 0.

#include "cpu.h"

namespace bare {

// Copies the code to REAL_CODE and calls it (near), with all segments 0, SP at REAL_STACK, interrupts off,
// and an interrupt vector table at 0 that is all zeros. It may leave results at REAL_DATA, which is zero
// before.
void run_real(const u8* begin, const u8* end);

inline volatile u16& real_word(unsigned index) { return reinterpret_cast<volatile u16*>(REAL_DATA)[index]; }

}  // namespace bare
