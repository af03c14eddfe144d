#pragma once
// May the running code use these ports? (SDM 1 19.5)
// Owner: nobody; a function over a Cpu. Only the vCPU's thread, inside Cpu::run().

#include "x86/cpu.h"
#include "x86/fault.h"

namespace anykvm::x86 {

// #GP(0) unless CPL <= IOPL or the I/O permission bitmap of the TSS allows `size` ports from `port` on.
Guest<void> check_io_permission(Cpu& cpu, u16 port, unsigned size);

}  // namespace anykvm::x86
