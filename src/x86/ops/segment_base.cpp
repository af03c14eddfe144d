// SWAPGS and the instructions that read and write the bases of FS and GS (SDM 2B). 64-bit mode only, where no
// translation depends on these bases. Compiled without vector instructions (kOpKeepsVector).

#include <utility>

#include "x86/ops/ops.h"

namespace anykvm::x86 {

namespace {

unsigned base_operand_size(const Insn& insn) { return insn.rex_w ? 8 : 4; }

Guest<void> read_base(Cpu& cpu, const Insn& insn, SegmentIndex index) {
  CpuState& state = cpu.state();
  if (!(state.cr4 & kCr4Fsgsbase)) return GuestStop::ud();
  write_gpr(state, insn, insn.rm, base_operand_size(insn), state.segments[index].base);
  return {};
}

Guest<void> write_base(Cpu& cpu, const Insn& insn, SegmentIndex index) {
  CpuState& state = cpu.state();
  if (!(state.cr4 & kCr4Fsgsbase)) return GuestStop::ud();
  u64 base = read_gpr(state, insn, insn.rm, base_operand_size(insn));
  if (!cpu.model().canonical_register(base)) return GuestStop::gp(0);
  state.segments[index].base = base;
  return {};
}

}  // namespace

Guest<void> op_swapgs(Cpu& cpu, const Insn&) {
  CpuState& state = cpu.state();
  std::swap(state.segments[kGs].base, state.msrs.kernel_gs_base);
  return {};
}

Guest<void> op_rdfsbase(Cpu& cpu, const Insn& insn) { return read_base(cpu, insn, kFs); }
Guest<void> op_rdgsbase(Cpu& cpu, const Insn& insn) { return read_base(cpu, insn, kGs); }
Guest<void> op_wrfsbase(Cpu& cpu, const Insn& insn) { return write_base(cpu, insn, kFs); }
Guest<void> op_wrgsbase(Cpu& cpu, const Insn& insn) { return write_base(cpu, insn, kGs); }

}  // namespace anykvm::x86
