#pragma once
// What a fuzzed CPU runs: bytes for the first megabyte, and the state to start from. Ring 0 in any mode.
// Owner: the fuzzer. Any thread.

#include <linux/kvm.h>

#include "base/types.h"
#include "random.h"

namespace anykvm::fuzz {

using isa::Random;

enum class CpuMode : u8 { kReal, kProtected16, kProtected32, kPae, kLong, kCompatibility, kVirtual8086 };
inline constexpr unsigned kCpuModes = 7;

// Places in the first megabyte.
inline constexpr u64 kTablesAt = 0x10000, kTablesSize = 0x10000;  // page tables
inline constexpr u64 kGdtAt = 0x20000, kIdtAt = 0x21000, kTssAt = 0x22000;
inline constexpr u64 kCodeAt = 0x30000, kCodeSize = 0x20000, kStackTop = 0x60000;
inline constexpr u64 kVmcbsAt = 0x5a000, kVmcbs = 4;  // of nested guests

// Fills tables, descriptors and code for a CPU in `mode` into the first megabyte.
void write_program(Random& random, CpuMode mode, u8* memory);
void random_state(Random& random, CpuMode mode, kvm_sregs* sregs, kvm_regs* regs);

// MSRs that CPUs of guests know, and some that they do not.
u32 random_msr(Random& random);
u16 random_port(Random& random);

}  // namespace anykvm::fuzz
