#pragma once
// What JMP, CALL, RET, IRET and event delivery share: which code segment may be entered, by which rule, on
// which stack (SDM 3A 5.8). Everything here checks and computes; commit_code() alone changes the state.
// Owner: nobody; functions over a Cpu. Only the vCPU's thread.

#include "x86/sys/segments.h"
#include "x86/sys/stack_frame.h"

namespace anykvm::x86 {

// Where execution goes on. `cs` is complete (RPL is the new CPL, accessed is set, in memory too).
struct CodeTarget {
  Segment cs{};
  u64 rip = 0;
  u8 cpl = 0;
};

// Far JMP and CALL straight to a code segment; the descriptor was read already.
Guest<CodeTarget> code_for_jump(Cpu& cpu, u16 selector, const Descriptor& descriptor, u64 offset);
// RET and IRET: to the selector's RPL.
Guest<CodeTarget> code_for_return(Cpu& cpu, u16 selector, u64 offset);
// Through a gate. `raise`: calls and events, which enter more privileged segments; jumps do not. In IA-32e
// mode the target must be 64-bit code.
Guest<CodeTarget> code_for_gate(Cpu& cpu, u16 selector, u64 offset, bool raise);

// The stack in the TSS for `cpl`, or that of `ist` (1-7) in IA-32e mode.
Guest<StackTarget> inner_stack(Cpu& cpu, u8 cpl, unsigned ist = 0);
// SS for a return to `code`, a less privileged level (or 64-bit IRET, any level).
Guest<Segment> outer_stack(Cpu& cpu, u16 selector, const CodeTarget& code);

// #GP(0) unless `rip` is within the limit, or canonical for 64-bit code.
Guest<void> check_rip(const CpuState& state, const Segment& cs, u64 rip);

// After a return to `cpl`: data segments that are more privileged become null (SDM 3A 5.8.6).
void drop_privileged_segments(CpuState& state, u8 cpl);

// CS, RIP and CPL. The caller then calls Cpu::mode_changed().
void commit_code(CpuState& state, const CodeTarget& code);

// Bits 63:48 | 31:16 and 15:0 of a gate.
constexpr u64 gate_offset(const Descriptor& gate) {
  return bits(gate.low, 15, 0) | bits(gate.low, 63, 48) << 16 | bits(gate.high, 31, 0) << 32;
}
constexpr u16 gate_selector(const Descriptor& gate) { return static_cast<u16>(bits(gate.low, 31, 16)); }

}  // namespace anykvm::x86
