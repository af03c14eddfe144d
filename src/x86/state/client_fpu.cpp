#include "x86/state/client_fpu.h"

#include <cstring>

#include "x86/state/xsave_image.h"

namespace anykvm::x86 {
namespace {

constexpr u32 kMxcsrOffset = 24, kRegistersOffset = 32, kInitialMxcsr = 0x1f80;

}  // namespace

kvm_fpu get_client_fpu(const CpuState& state) {
  kvm_fpu fpu{};
  const u8* x87 = xsave_component_bytes(state, 0);
  std::memcpy(&fpu.fcw, x87, 2);
  std::memcpy(&fpu.fsw, x87 + 2, 2);
  std::memcpy(&fpu.ftwx, x87 + 4, 1);
  std::memcpy(fpu.fpr, x87 + kRegistersOffset, sizeof fpu.fpr);
  std::memcpy(fpu.xmm, xsave_component_bytes(state, 1), sizeof fpu.xmm);
  std::memcpy(&fpu.mxcsr, &state.xsave[kMxcsrOffset], 4);
  return fpu;
}

void set_client_fpu(CpuState& state, const kvm_fpu& fpu) {
  u8* x87 = xsave_component_for_change(state, 0);
  std::memset(x87, 0, kMxcsrOffset);
  std::memcpy(x87, &fpu.fcw, 2);
  std::memcpy(x87 + 2, &fpu.fsw, 2);
  std::memcpy(x87 + 4, &fpu.ftwx, 1);
  std::memcpy(x87 + kRegistersOffset, fpu.fpr, sizeof fpu.fpr);
  std::memcpy(xsave_component_for_change(state, 1), fpu.xmm, sizeof fpu.xmm);
  const u32 mxcsr = fpu.mxcsr & mxcsr_mask();
  std::memcpy(&state.xsave[kMxcsrOffset], &mxcsr, 4);
}

void get_client_xsave(const CpuState& state, u8* image, u32 size) {
  std::memset(image, 0, size);
  XsaveWrites writes;
  plan_xsave(state, XsaveForm::kStandard, guest_xcr0_supported(), 0, true, &writes);
  for (unsigned i = 0; i < writes.count; ++i) {
    const XsaveWrites::Piece& piece = writes.pieces[i];
    if (piece.offset + piece.size <= size) std::memcpy(image + piece.offset, piece.data, piece.size);
  }
}

bool set_client_xsave(CpuState& state, const u8* image, u32 size) {
  XsaveHeader header;
  std::memcpy(&header, image + kXsaveHeaderOffset, sizeof header);
  u32 mxcsr;
  std::memcpy(&mxcsr, image + kMxcsrOffset, sizeof mxcsr);
  u64 supported = guest_xcr0_supported();
  // The kernel looks at MXCSR only where a component that uses it is present, and else leaves it initial.
  bool has_mxcsr = header.xstate_bv & (kXcr0Sse | kXcr0Avx);
  if (!valid_xrstor(header, has_mxcsr ? mxcsr : 0, supported, supported, false)) return false;
  if (xsave_standard_size(header.xstate_bv) > size) return false;
  // PKRU keeps its value where the image has none.
  u64 loaded = header.xstate_bv & kXcr0Pkru ? supported : supported & ~u64{kXcr0Pkru};
  apply_xrstor(state, image, loaded, true);
  if (!has_mxcsr) std::memcpy(&state.xsave[kMxcsrOffset], &kInitialMxcsr, sizeof kInitialMxcsr);
  return true;
}

}  // namespace anykvm::x86
