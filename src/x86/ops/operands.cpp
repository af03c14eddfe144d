#include "x86/mmu/access.h"
#include "x86/ops/ops.h"

namespace anykvm::x86 {

namespace {

u64 register_value(const CpuState& state, u8 number) {
  if (number == kNoRegister) return 0;
  return number == kRipBase ? state.rip : state.gpr[number];
}

// Without REX, byte registers 4-7 are AH, CH, DH, BH (SDM 2A 2.1.5).
bool is_high_byte(const Insn& insn, u8 number, unsigned size) {
  return size == 1 && !insn.rex && number >= 4 && number < 8;
}

}  // namespace

u64 effective_offset(const CpuState& state, const Insn& insn) {
  const MemoryOperand& memory = insn.memory;
  u64 offset = register_value(state, memory.base) + register_value(state, memory.index) * memory.scale +
               static_cast<u64>(memory.displacement);
  return offset & low_bits(insn.address_size * 8);
}

Guest<Gva> two_part_operand(Cpu& cpu, const Insn& insn, unsigned first, unsigned second) {
  const CpuState& state = cpu.state();
  const SegmentIndex segment = insn.memory.segment;
  const u64 offset = effective_offset(state, insn);
  const Gva address = TRY(linear_address(state, segment, offset, first, Access::kRead));
  TRY(linear_address(state, segment, offset + first, second, Access::kRead));
  return address;
}

Guest<Gva> far_pointer_operand(Cpu& cpu, const Insn& insn) {
  return two_part_operand(cpu, insn, insn.operand_size, 2);
}

Guest<Gva> memory_operand(Cpu& cpu, const Insn& insn, unsigned size, Access access) {
  return linear_address(cpu.state(), insn.memory.segment, effective_offset(cpu.state(), insn), size, access);
}

u64 read_gpr(const CpuState& state, const Insn& insn, u8 number, unsigned size) {
  if (is_high_byte(insn, number, size)) return bits(state.gpr[number - 4], 15, 8);
  return state.gpr[number] & low_bits(size * 8);
}

void write_gpr(CpuState& state, const Insn& insn, u8 number, unsigned size, u64 value) {
  if (is_high_byte(insn, number, size)) {
    u64& high = state.gpr[number - 4];
    high = (high & ~u64{0xff00}) | (value & 0xff) << 8;
    return;
  }
  u64 mask = low_bits(size * 8);
  u64 kept = size >= 4 ? 0 : state.gpr[number] & ~mask;
  state.gpr[number] = kept | (value & mask);
}

Guest<u64> read_rm(Cpu& cpu, const Insn& insn, unsigned size) {
  if (!insn.has_memory) return read_gpr(cpu.state(), insn, insn.rm, size);
  Gva address = TRY(memory_operand(cpu, insn, size, Access::kRead));
  u64 value = 0;
  TRY(read_linear(cpu, address, &value, size));
  return value;
}

Guest<void> write_rm(Cpu& cpu, const Insn& insn, unsigned size, u64 value) {
  if (!insn.has_memory) {
    write_gpr(cpu.state(), insn, insn.rm, size, value);
    return {};
  }
  Gva address = TRY(memory_operand(cpu, insn, size, Access::kWrite));
  return write_linear(cpu, address, &value, size);
}

unsigned stack_width(const CpuState& state) {
  if (state.code64()) return 8;
  return state.segments[kSs].db ? 4 : 2;
}

Guest<void> push_value(Cpu& cpu, u64 value, unsigned size) {
  CpuState& state = cpu.state();
  u64 mask = low_bits(stack_width(state) * 8);
  u64 offset = (state.gpr[kRsp] - size) & mask;
  Gva address = TRY(linear_address(state, kSs, offset, size, Access::kWrite));
  TRY(write_linear(cpu, address, &value, size));
  state.gpr[kRsp] = mask == 0xffff ? (state.gpr[kRsp] & ~mask) | offset : offset;
  return {};
}

Guest<u64> pop_value(Cpu& cpu, unsigned size) {
  CpuState& state = cpu.state();
  u64 mask = low_bits(stack_width(state) * 8);
  u64 offset = state.gpr[kRsp] & mask;
  Gva address = TRY(linear_address(state, kSs, offset, size, Access::kRead));
  u64 value = 0;
  TRY(read_linear(cpu, address, &value, size));
  u64 next = (offset + size) & mask;
  state.gpr[kRsp] = mask == 0xffff ? (state.gpr[kRsp] & ~mask) | next : next;
  return value;
}

}  // namespace anykvm::x86
