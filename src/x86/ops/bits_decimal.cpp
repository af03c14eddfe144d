// BT, BTS, BTR, BTC on bit strings in memory, and the decimal adjust instructions. SDM 2A and 2B.
#include "base/guarded_memory.h"
#include "x86/mmu/access.h"
#include "x86/ops/ops.h"

namespace anykvm::x86 {
namespace {

void set_flag(CpuState& state, u64 flag, bool value) {
  state.rflags = value ? state.rflags | flag : state.rflags & ~flag;
}

enum class BitAction : u8 { kTest, kSet, kReset, kComplement };

BitAction action_of(const Insn& insn) {
  switch (insn.opcode) {
    case 0xab:
      return BitAction::kSet;
    case 0xb3:
      return BitAction::kReset;
    case 0xbb:
      return BitAction::kComplement;
    default:
      return BitAction::kTest;
  }
}

u64 apply(BitAction action, u64 value, u64 mask) {
  switch (action) {
    case BitAction::kSet:
      return value | mask;
    case BitAction::kReset:
      return value & ~mask;
    case BitAction::kComplement:
      return value ^ mask;
    case BitAction::kTest:
      break;
  }
  return value;
}

// Where the word with the addressed bit lies: the register offset is signed and reaches beyond the operand.
Guest<Gva> bit_string_word(Cpu& cpu, const Insn& insn, i64 offset, Access access) {
  unsigned size = insn.operand_size;
  i64 words = offset >> (size == 8 ? 6 : size == 4 ? 5 : 4);
  u64 address = effective_offset(cpu.state(), insn) + static_cast<u64>(words * size);
  address &= low_bits(8u * insn.address_size);
  return linear_address(cpu.state(), insn.memory.segment, address, size, access);
}

void adjust_flags(CpuState& state, u8 al) {
  set_flag(state, kFlagSf, al & 0x80);
  set_flag(state, kFlagZf, al == 0);
  set_flag(state, kFlagPf, !__builtin_parity(al));
}

void decimal_adjust(CpuState& state, int sign) {
  u64& rax = state.gpr[kRax];
  u8 old = static_cast<u8>(rax), al = old;
  bool carry = state.rflags & kFlagCf, half = state.rflags & kFlagAf, new_carry = false;
  if ((old & 0xf) > 9 || half) {
    new_carry = carry || (sign > 0 ? al > 0xff - 6 : al < 6);
    al = static_cast<u8>(al + sign * 6);
    half = true;
  } else {
    half = false;
  }
  if (old > 0x99 || carry) {
    al = static_cast<u8>(al + sign * 0x60);
    new_carry = true;
  }
  rax = (rax & ~u64{0xff}) | al;
  set_flag(state, kFlagAf, half);
  set_flag(state, kFlagCf, new_carry);
  adjust_flags(state, al);
}

void ascii_adjust(CpuState& state, int sign) {
  u64& rax = state.gpr[kRax];
  u16 ax = static_cast<u16>(rax);
  bool adjust = (ax & 0xf) > 9 || (state.rflags & kFlagAf);
  if (adjust) ax = static_cast<u16>(sign > 0 ? ax + 0x106 : ax - 6 - 0x100);
  ax &= 0xff0f;
  rax = (rax & ~u64{0xffff}) | ax;
  set_flag(state, kFlagAf, adjust);
  set_flag(state, kFlagCf, adjust);
  adjust_flags(state, static_cast<u8>(ax));
}

Guest<void> ascii_multiply(CpuState& state, u8 base, bool divide) {
  u64& rax = state.gpr[kRax];
  u8 al = static_cast<u8>(rax), ah = static_cast<u8>(rax >> 8);
  if (divide) {
    if (base == 0) return GuestStop::de();
    ah = al / base;
    al = al % base;
  } else {
    al = static_cast<u8>(al + ah * base);
    ah = 0;
  }
  rax = (rax & ~u64{0xffff}) | static_cast<u64>(ah) << 8 | al;
  set_flag(state, kFlagAf, false);
  set_flag(state, kFlagCf, false);
  set_flag(state, kFlagOf, false);
  adjust_flags(state, al);
  return {};
}

}  // namespace

Guest<void> op_bit_string(Cpu& cpu, const Insn& insn) {
  unsigned size = insn.operand_size;
  CpuState& state = cpu.state();
  auto offset = static_cast<i64>(sign_extend(read_gpr(state, insn, insn.reg, size), size * 8));
  BitAction action = action_of(insn);
  u64 mask = bit(static_cast<unsigned>(offset) & (size * 8 - 1));
  bool write = action != BitAction::kTest;
  Gva address = TRY(bit_string_word(cpu, insn, offset, write ? Access::kWrite : Access::kRead));
  u8* host = write && insn.lock ? TRY(host_pointer(cpu, address, size, Access::kWrite)) : nullptr;
  u64 before = 0;
  if (host) {
    auto updated = guarded_update(host, size, [&](u64 value) { return apply(action, value, mask); });
    if (!updated) return GuestStop::unmapped();
    before = *updated;
  } else {
    if (write) TRY(probe_write(cpu, address, size));  // one fault, and that of a write
    TRY(read_linear(cpu, address, &before, size));
    u64 after = apply(action, before, mask);
    if (write && insn.lock) {
      if (!TRY(replace_across_pages(cpu, address, &before, &after, size))) return GuestStop::again();
    } else if (write) {
      TRY(write_linear(cpu, address, &after, size));
    }
  }
  set_flag(state, kFlagCf, before & mask);
  return {};
}

Guest<void> op_decimal(Cpu& cpu, const Insn& insn) {
  CpuState& state = cpu.state();
  if (insn.code_bits == 64) return GuestStop::ud();
  switch (insn.opcode) {
    case 0x27:
      decimal_adjust(state, +1);
      break;
    case 0x2f:
      decimal_adjust(state, -1);
      break;
    case 0x37:
      ascii_adjust(state, +1);
      break;
    case 0x3f:
      ascii_adjust(state, -1);
      break;
    case 0xd4:
      return ascii_multiply(state, static_cast<u8>(insn.immediate), true);
    case 0xd5:
      return ascii_multiply(state, static_cast<u8>(insn.immediate), false);
    default:  // SALC
      state.gpr[kRax] = (state.gpr[kRax] & ~u64{0xff}) | (state.rflags & kFlagCf ? 0xff : 0);
      break;
  }
  return {};
}

// The address of POP's memory operand is computed with RSP already past the popped value (SDM 2B, POP).
Guest<void> op_pop_memory(Cpu& cpu, const Insn& insn) {
  CpuState& state = cpu.state();
  u64 before = state.gpr[kRsp];
  u64 value = TRY(pop_value(cpu, insn.operand_size));
  auto written = write_rm(cpu, insn, insn.operand_size, value);
  if (!written.ok()) state.gpr[kRsp] = before;
  return written;
}

}  // namespace anykvm::x86
