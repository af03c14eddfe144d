// IN, OUT, INS and OUTS (SDM 1 chapter 19).

#include "x86/mmu/access.h"
#include "x86/nested/svm/exits.h"
#include "x86/ops/io_permission.h"
#include "x86/ops/string_common.h"

namespace anykvm::x86 {
namespace {

u16 port_in_dx(const CpuState& state) { return static_cast<u16>(state.gpr[kRdx]); }

// E4-E7 have the port in the instruction, EC-EF in DX.
u16 port_operand(const CpuState& state, const Insn& insn) {
  bool in_dx = insn.opcode & 0x08;
  return in_dx ? port_in_dx(state) : static_cast<u8>(insn.immediate);
}

// REX.W does not widen ports.
unsigned port_size(const Insn& insn) { return std::min<unsigned>(insn.operand_size, 4); }

Guest<void> ins_element(Cpu& cpu, const StringRun& run, u16 port, unsigned size) {
  Gva address = TRY(linear_address(cpu.state(), kEs, run.rdi(), size, Access::kWrite));
  // Reading a port may have effects, so a fault of the store must come first.
  TRY(probe_write(cpu, address, size));
  // A client is asked for as many items as fit the page, at most 1024 bytes of them.
  constexpr u64 kMostBytes = 1024;
  u64 ahead = std::min(run.left(), std::max<u64>(kMostBytes / size, 1));
  if (run.backward()) ahead = 1;
  ahead = std::min(ahead, std::max<u64>(run.elements_in_page(run.rdi(), address), 1));
  u32 value = 0;
  TRY(cpu.pio_read_ahead(port, &value, size, static_cast<unsigned>(ahead)));
  return write_linear(cpu, address, &value, size);
}

Guest<void> outs_element(Cpu& cpu, const StringRun& run, SegmentIndex segment, u16 port, unsigned size) {
  Gva address = TRY(linear_address(cpu.state(), segment, run.rsi(), size, Access::kRead));
  u32 value = 0;
  TRY(read_linear(cpu, address, &value, size));
  return cpu.pio_write(port, &value, size);
}

// Does the element go through the client, advance() has made it final before the next one starts.
Insn with_port_size(const Insn& insn) {
  Insn copy = insn;
  copy.operand_size = static_cast<u8>(port_size(insn));
  return copy;
}

}  // namespace

Guest<void> op_in(Cpu& cpu, const Insn& insn) {
  CpuState& state = cpu.state();
  u16 port = port_operand(state, insn);
  unsigned size = port_size(insn);
  TRY(check_io_permission(cpu, port, size));
  TRY(svm::check_io(cpu, insn, {.port = port, .size = size, .in = true}));
  u32 value = 0;
  TRY(cpu.pio_read(port, &value, size));
  write_gpr(state, insn, kRax, size, value);
  cpu.io_done();
  return {};
}

Guest<void> op_out(Cpu& cpu, const Insn& insn) {
  const CpuState& state = cpu.state();
  u16 port = port_operand(state, insn);
  unsigned size = port_size(insn);
  TRY(check_io_permission(cpu, port, size));
  TRY(svm::check_io(cpu, insn, {.port = port, .size = size}));
  auto value = static_cast<u32>(state.gpr[kRax]);
  TRY(cpu.pio_write(port, &value, size));
  cpu.io_done();
  return {};
}

Guest<void> op_ins(Cpu& cpu, const Insn& original) {
  Insn insn = with_port_size(original);
  StringRun run(cpu, insn);
  u16 port = port_in_dx(cpu.state());
  TRY(check_io_permission(cpu, port, run.size()));
  TRY(svm::check_io(cpu, insn, {.port = port, .size = run.size(), .in = true, .string = true}));
  while (run.left()) {
    TRY(ins_element(cpu, run, port, run.size()));
    run.advance(1, false, true);
  }
  run.finish();
  return {};
}

Guest<void> op_outs(Cpu& cpu, const Insn& original) {
  Insn insn = with_port_size(original);
  StringRun run(cpu, insn);
  SegmentIndex segment = string_source_segment(insn);
  u16 port = port_in_dx(cpu.state());
  TRY(check_io_permission(cpu, port, run.size()));
  TRY(svm::check_io(cpu, insn, {.port = port, .size = run.size(), .string = true, .segment = segment}));
  while (run.left()) {
    TRY(outs_element(cpu, run, segment, port, run.size()));
    run.advance(1, true, false);
  }
  run.finish();
  return {};
}

}  // namespace anykvm::x86
