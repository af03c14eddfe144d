// FNSAVE, FRSTOR, FNSTENV, FLDENV and MASKMOVQ, MASKMOVDQU (SDM 2).

#include <cstring>

#include "x86/mmu/access.h"
#include "x86/ops/ops.h"
#include "x86/ops/string_common.h"
#include "x86/state/x87_environment.h"
#include "x86/state/xsave_image.h"

namespace anykvm::x86 {
namespace {

// Operand size 32 unless the code segment or a prefix says 16; 64-bit mode has no wider form, but REX.W
// makes the prefix void.
bool wide_form(const Insn& insn) { return insn.rex_w || (insn.code_bits == 16) == insn.operand_size_prefix; }

Guest<void> check_x87_usable(const CpuState& state) {
  if (state.cr0 & (kCr0Em | kCr0Ts)) return GuestStop::nm();
  return {};
}

// FLDENV and FRSTOR are waiting instructions.
Guest<void> check_no_exception_pending(const CpuState& state) {
  if (x87_exception_pending(state)) return GuestStop::mf();
  return {};
}

bool has_vex_prefix(const Insn& insn) {
  for (u8 byte : insn.bytes) {
    switch (byte) {
      case 0x26:
      case 0x2e:
      case 0x36:
      case 0x3e:
      case 0x64:
      case 0x65:
      case 0x67:
        break;
      default:
        return byte == 0xc4 || byte == 0xc5;
    }
  }
  return false;
}

Guest<void> check_sse_usable(const CpuState& state) {
  if ((state.cr0 & kCr0Em) || !(state.cr4 & kCr4Osfxsr)) return GuestStop::ud();
  if (state.cr0 & kCr0Ts) return GuestStop::nm();
  return {};
}

Guest<void> check_avx_usable(const CpuState& state) {
  constexpr u64 kNeeded = kXcr0Sse | kXcr0Avx;
  bool enabled = state.protected_mode() && !state.v86_mode() && (state.cr4 & kCr4Osxsave);
  if (!enabled || (state.xcr0 & kNeeded) != kNeeded) return GuestStop::ud();
  if (state.cr0 & kCr0Ts) return GuestStop::nm();
  return {};
}

// Stores those of the `size` bytes at `data` whose byte in `mask` has bit 7 set at [rDI]; all of them or
// none. All `size` bytes must be writable, as on AMD's CPUs; the manuals leave it open.
Guest<void> masked_store(Cpu& cpu, const Insn& insn, const u8* data, const u8* mask, unsigned size) {
  const CpuState& state = cpu.state();
  SegmentIndex segment = string_source_segment(insn);
  const u64 offset = state.gpr[kRdi] & low_bits(insn.address_size * 8);
  TRY(unaligned_address(state, segment, offset, size, Access::kWrite));
  Gva addresses[16];
  for (unsigned i = 0; i < size; ++i) {
    addresses[i] = TRY(unaligned_address(state, segment, offset + i, 1, Access::kWrite));
    TRY(probe_write(cpu, addresses[i], 1));
  }
  for (unsigned i = 0; i < size; ++i) {
    if (mask[i] & 0x80) TRY(write_linear(cpu, addresses[i], data + i, 1));
  }
  return {};
}

}  // namespace

Guest<void> op_fnstenv(Cpu& cpu, const Insn& insn) {
  CpuState& state = cpu.state();
  TRY(check_x87_usable(state));
  bool wide = wide_form(insn);
  X87Image image;
  store_x87_environment(state, wide, &image);
  u32 size = x87_environment_size(wide);
  Gva address = TRY(memory_operand(cpu, insn, size, Access::kWrite));
  TRY(write_linear(cpu, address, image.bytes.data(), size));
  mask_x87_exceptions(state);
  return {};
}

Guest<void> op_fldenv(Cpu& cpu, const Insn& insn) {
  CpuState& state = cpu.state();
  TRY(check_x87_usable(state));
  TRY(check_no_exception_pending(state));
  bool wide = wide_form(insn);
  u32 size = x87_environment_size(wide);
  Gva address = TRY(memory_operand(cpu, insn, size, Access::kRead));
  X87Image image;
  TRY(read_linear(cpu, address, image.bytes.data(), size));
  load_x87_environment(state, wide, image);
  return {};
}

Guest<void> op_fnsave(Cpu& cpu, const Insn& insn) {
  CpuState& state = cpu.state();
  TRY(check_x87_usable(state));
  bool wide = wide_form(insn);
  X87Image image;
  store_x87_environment(state, wide, &image);
  store_x87_stack(state, wide, &image);
  u32 size = x87_environment_size(wide) + kX87StackBytes;
  Gva address = TRY(memory_operand(cpu, insn, size, Access::kWrite));
  TRY(write_linear(cpu, address, image.bytes.data(), size));
  initialize_x87(state);
  return {};
}

Guest<void> op_frstor(Cpu& cpu, const Insn& insn) {
  CpuState& state = cpu.state();
  TRY(check_x87_usable(state));
  TRY(check_no_exception_pending(state));
  bool wide = wide_form(insn);
  u32 size = x87_environment_size(wide) + kX87StackBytes;
  Gva address = TRY(memory_operand(cpu, insn, size, Access::kRead));
  X87Image image;
  TRY(read_linear(cpu, address, image.bytes.data(), size));
  load_x87_environment(state, wide, image);
  load_x87_stack(state, wide, image);
  return {};
}

Guest<void> op_maskmovdqu(Cpu& cpu, const Insn& insn) {
  const CpuState& state = cpu.state();
  if (has_vex_prefix(insn)) {
    TRY(check_avx_usable(state));
  } else {
    TRY(check_sse_usable(state));
  }
  const u8* xmm = xsave_component_bytes(state, 1);
  return masked_store(cpu, insn, xmm + insn.reg * 16, xmm + insn.rm * 16, 16);
}

Guest<void> op_maskmovq(Cpu& cpu, const Insn& insn) {
  CpuState& state = cpu.state();
  if (state.cr0 & kCr0Em) return GuestStop::ud();
  if (state.cr0 & kCr0Ts) return GuestStop::nm();
  TRY(check_no_exception_pending(state));
  std::array<u64, 8> registers = mmx_registers(state);
  u8 data[8], mask[8];
  std::memcpy(data, &registers[insn.reg & 7], sizeof data);
  std::memcpy(mask, &registers[insn.rm & 7], sizeof mask);
  enter_mmx(state);  // also if the store faults, as on AMD's CPUs
  return masked_store(cpu, insn, data, mask, sizeof data);
}

}  // namespace anykvm::x86
