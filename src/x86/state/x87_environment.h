#pragma once
// The x87 environment as FNSTENV, FNSAVE and their counterparts lay it out (SDM 1 8.1.10).
// Owner: nobody; functions over CpuState::xsave. Only the vCPU's thread.

#include <array>

#include "x86/state/cpu_state.h"

namespace anykvm::x86 {

inline constexpr u32 kX87StackBytes = 80;  // ST(0) to ST(7), packed, behind the environment in FNSAVE's image

// Bytes of the environment: 14 for 16-bit operand size, 28 otherwise. Pointers and opcode are given out as 0
// and ignored on the way in (docs/quirks.md), so that the real-mode and protected-mode formats are the same.
constexpr u32 x87_environment_size(bool wide) { return wide ? 28 : 14; }

// What CPUs make of the words that an image brings: reserved bits of the control word have fixed values, ES and
// B of the status word say whether an unmasked exception is pending.
u16 x87_control_word(u16 loaded);
u16 x87_status_word(u16 loaded, u16 fcw);

struct X87Image {
  std::array<u8, 28 + kX87StackBytes> bytes{};
};

void store_x87_environment(const CpuState& state, bool wide, X87Image* out);
void store_x87_stack(const CpuState& state, bool wide, X87Image* out);
void load_x87_environment(CpuState& state, bool wide, const X87Image& image);
void load_x87_stack(CpuState& state, bool wide, const X87Image& image);

// After FNSTENV: all exceptions masked. After FNSAVE: as FNINIT.
void mask_x87_exceptions(CpuState& state);
void initialize_x87(CpuState& state);
// An unmasked exception waits for the next x87 instruction (FSW.ES).
bool x87_exception_pending(const CpuState& state);

// Registers as MMX numbers them: R0 to R7, whatever TOP says. enter_mmx() does what every MMX instruction
// does: TOP = 0, no register empty.
std::array<u64, 8> mmx_registers(const CpuState& state);
void enter_mmx(CpuState& state);

}  // namespace anykvm::x86
