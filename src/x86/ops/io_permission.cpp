#include "x86/ops/io_permission.h"

#include "x86/mmu/access.h"

namespace anykvm::x86 {
namespace {

constexpr u32 kBitmapOffsetField = 102;  // same place in 32-bit and 64-bit TSSs (SDM 3A figures 8-2, 8-11)

bool is_16_bit_tss(const Segment& tr) { return (tr.type & 0xd) == 0x1; }

Guest<u16> read_tss(Cpu& cpu, u64 offset) {
  const CpuState& state = cpu.state();
  u64 address = state.tr.base + offset;
  if (!state.long_mode()) address &= low_bits(32);
  return load<u16>(cpu, Gva(address), Privilege::kSystem);
}

}  // namespace

Guest<void> check_io_permission(Cpu& cpu, u16 port, unsigned size) {
  const CpuState& state = cpu.state();
  if (state.real_mode()) return {};
  if (!state.v86_mode() && state.cpl <= state.iopl()) return {};

  const Segment& tr = state.tr;
  if (tr.unusable || is_16_bit_tss(tr) || tr.limit < kBitmapOffsetField + 1) return GuestStop::gp(0);
  u32 offset = TRY(read_tss(cpu, kBitmapOffsetField)) + port / 8u;
  // The CPU always reads two bytes, for ports that straddle a byte (SDM 1 19.5.2).
  if (offset + 1 > tr.limit) return GuestStop::gp(0);
  u16 bitmap = TRY(read_tss(cpu, offset));
  u64 denied = (bitmap >> (port % 8)) & low_bits(size);
  if (denied) return GuestStop::gp(0);
  return {};
}

}  // namespace anykvm::x86
