// FXSAVE, FXRSTOR and the XSAVE family (SDM 1 10.5, chapter 13).

#include <array>
#include <cstring>

#include "x86/mmu/access.h"
#include "x86/ops/ops.h"
#include "x86/state/xsave_image.h"

namespace anykvm::x86 {
namespace {

constexpr u32 kFxsaveSize = 512, kMxcsrOffset = 24;

struct Image {
  alignas(64) std::array<u8, kXsaveAreaSize> bytes;
};

bool code64(const Insn& insn) { return insn.code_bits == 64; }

u64 requested_components(const CpuState& state) {
  u64 edx_eax = state.gpr[kRdx] << 32 | static_cast<u32>(state.gpr[kRax]);
  return state.xcr0 & edx_eax;
}

Guest<void> check_xsave_usable(Cpu& cpu, Feature feature) {
  const CpuState& state = cpu.state();
  if (!(state.cr4 & kCr4Osxsave) || !cpu.model().has(feature)) return GuestStop::ud();
  if (state.cr0 & kCr0Ts) return GuestStop::nm();
  return {};
}

Guest<void> check_fxsave_usable(const CpuState& state) {
  if (state.cr0 & (kCr0Em | kCr0Ts)) return GuestStop::nm();
  return {};
}

Guest<Gva> aligned_operand(Cpu& cpu, const Insn& insn, unsigned size, unsigned alignment, Access access) {
  Gva address = TRY(memory_operand(cpu, insn, size, access));
  if (address.value % alignment) return GuestStop::gp(0);
  return address;
}

// All pieces are writable before the first is written, so that a fault leaves no half image.
Guest<void> carry_out(Cpu& cpu, Gva base, const XsaveWrites& writes) {
  for (unsigned i = 0; i < writes.count; ++i) {
    TRY(probe_write(cpu, base + writes.pieces[i].offset, writes.pieces[i].size));
  }
  for (unsigned i = 0; i < writes.count; ++i) {
    const XsaveWrites::Piece& piece = writes.pieces[i];
    TRY(write_linear(cpu, base + piece.offset, piece.data, piece.size));
  }
  return {};
}

Guest<void> save(Cpu& cpu, const Insn& insn, XsaveForm form) {
  const CpuState& state = cpu.state();
  u64 requested = requested_components(state);
  bool compacted = form == XsaveForm::kCompacted;
  u32 size = compacted ? xsave_compacted_size(requested) : xsave_standard_size(requested);
  Gva base = TRY(aligned_operand(cpu, insn, size, 64, Access::kWrite));
  u64 old_xstate_bv = 0;
  if (!compacted) old_xstate_bv = TRY(load<u64>(cpu, base + kXsaveHeaderOffset));
  XsaveWrites writes;
  plan_xsave(state, form, requested, old_xstate_bv, code64(insn), &writes);
  return carry_out(cpu, base, writes);
}

void load_pkru(Cpu& cpu, u32 before) {
  // The TLB's entries say what the old keys permitted.
  if (cpu.state().pkru != before) cpu.flush_tlb();
}

Guest<void> restore(Cpu& cpu, const Insn& insn, bool compacted_allowed, bool compacted_needed) {
  CpuState& state = cpu.state();
  u64 requested = requested_components(state);
  constexpr u32 kLeast = kXsaveHeaderOffset + sizeof(XsaveHeader);
  Gva base = TRY(aligned_operand(cpu, insn, kLeast, 64, Access::kRead));
  Image image;
  TRY(read_linear(cpu, base, image.bytes.data(), kLeast));
  XsaveHeader header;
  u32 mxcsr;
  std::memcpy(&header, &image.bytes[kXsaveHeaderOffset], sizeof header);
  std::memcpy(&mxcsr, &image.bytes[kMxcsrOffset], sizeof mxcsr);
  if (compacted_needed && !(header.xcomp_bv & kXcompCompacted)) return GuestStop::gp(0);
  if (!valid_xrstor(header, mxcsr, state.xcr0, requested, compacted_allowed)) return GuestStop::gp(0);
  u32 size = xrstor_size(header, requested);
  TRY(memory_operand(cpu, insn, size, Access::kRead));
  if (size > kLeast) TRY(read_linear(cpu, base + kLeast, &image.bytes[kLeast], size - kLeast));

  u32 old_pkru = state.pkru;
  apply_xrstor(state, image.bytes.data(), requested, code64(insn));
  load_pkru(cpu, old_pkru);
  return {};
}

// EFER.FFXSR: system code may leave out the XMM registers (APM 2 11.4.4.3).
bool fxsave_covers_xmm(const CpuState& state, const Insn& insn) {
  return !((state.efer & kEferFfxsr) && state.cpl == 0 && code64(insn));
}

}  // namespace

Guest<void> op_fxsave(Cpu& cpu, const Insn& insn) {
  const CpuState& state = cpu.state();
  TRY(check_fxsave_usable(state));
  Gva base = TRY(aligned_operand(cpu, insn, kFxsaveSize, 16, Access::kWrite));
  XsaveWrites writes;
  plan_fxsave(state, code64(insn), fxsave_covers_xmm(state, insn), &writes);
  return carry_out(cpu, base, writes);
}

Guest<void> op_fxrstor(Cpu& cpu, const Insn& insn) {
  CpuState& state = cpu.state();
  TRY(check_fxsave_usable(state));
  Gva base = TRY(aligned_operand(cpu, insn, kFxsaveSize, 16, Access::kRead));
  std::array<u8, kFxsaveSize> image;
  TRY(read_linear(cpu, base, image.data(), kFxsaveSize));
  u32 mxcsr;
  std::memcpy(&mxcsr, &image[kMxcsrOffset], sizeof mxcsr);
  if (mxcsr & ~mxcsr_mask()) return GuestStop::gp(0);
  apply_fxrstor(state, image.data(), code64(insn), fxsave_covers_xmm(state, insn));
  return {};
}

// XSAVE is 0F AE /4, XSAVEOPT 0F AE /6.
Guest<void> op_xsave(Cpu& cpu, const Insn& insn) {
  bool optimized = (insn.reg & 7) == 6;
  TRY(check_xsave_usable(cpu, optimized ? Feature::kXsaveopt : Feature::kXsave));
  return save(cpu, insn, optimized ? XsaveForm::kOptimized : XsaveForm::kStandard);
}

Guest<void> op_xsavec(Cpu& cpu, const Insn& insn) {
  TRY(check_xsave_usable(cpu, Feature::kXsavec));
  return save(cpu, insn, XsaveForm::kCompacted);
}

// There are no supervisor components, so XSAVES stores what XSAVEC stores (SDM 1 13.11).
Guest<void> op_xsaves(Cpu& cpu, const Insn& insn) {
  TRY(check_xsave_usable(cpu, Feature::kXsaves));
  return save(cpu, insn, XsaveForm::kCompacted);
}

Guest<void> op_xrstor(Cpu& cpu, const Insn& insn) {
  TRY(check_xsave_usable(cpu, Feature::kXsave));
  return restore(cpu, insn, cpu.model().has(Feature::kXsavec), false);
}

Guest<void> op_xrstors(Cpu& cpu, const Insn& insn) {
  TRY(check_xsave_usable(cpu, Feature::kXsaves));
  return restore(cpu, insn, true, true);
}

}  // namespace anykvm::x86
