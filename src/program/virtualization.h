#pragma once
// What a program sees that asks the CPU itself whether it has VMX or SVM, before it looks for /dev/kvm.
// Owner: the process.

#include "program/functions.h"

namespace anykvm::program {

// From now on the program's CPUID instructions say that the CPU has virtualization, where it has none.
// Each that can be led past us is (detour.h); the others, and those of libraries, keep telling the truth. To
// be called before the program's own code runs. Nothing is changed where memory or rights for it lack.
void show_virtualization(const Image& program);

}  // namespace anykvm::program
