#pragma once
// What XSAVE and its relatives put into memory and take from it (SDM 1 13.7-13.12), without the memory: the
// instruction helpers (ops/xsave.cpp) and the client's KVM_GET/SET_XSAVE share it. Owner: nobody; functions
// over CpuState. Only the vCPU's thread.
//
// CpuState::xsave is always a standard-format image: XSTATE_BV in its header says which components are not in
// their initial configuration, and bytes of the others mean nothing. MXCSR is always valid. PKRU is
// CpuState::pkru.

#include <array>

#include "x86/state/cpu_state.h"
#include "x86/state/xsave.h"

namespace anykvm::x86 {

enum class XsaveForm : u8 {
  kStandard,   // XSAVE
  kOptimized,  // XSAVEOPT: components in their initial configuration are not written
  kCompacted,  // XSAVEC, XSAVES: those are not written either, and the others are packed
};

// The first 24 bytes of XSAVE's header (SDM 1 13.4.2); the other 40 must be zero where `tail` is looked at.
struct XsaveHeader {
  u64 xstate_bv = 0, xcomp_bv = 0;
  std::array<u64, 6> tail{};
};
static_assert(sizeof(XsaveHeader) == 64);

inline constexpr u32 kXsaveHeaderOffset = 512;
inline constexpr u64 kXcompCompacted = bit(63);

// Bytes to write, by offset in the image. `data` points into the CpuState or into the XsaveWrites itself.
struct XsaveWrites {
  struct Piece {
    u32 offset = 0, size = 0;
    const u8* data = nullptr;
  };
  std::array<Piece, 16> pieces{};
  unsigned count = 0;

  std::array<u8, 24> x87_control{};  // FCW to FDP, whose pointers are given out as 0
  std::array<u32, 2> mxcsr{};        // and its mask
  std::array<u64, 2> header{};       // XSTATE_BV and XCOMP_BV
  std::array<u8, 8> pkru{};

  void add(u32 offset, u32 size, const void* data) {
    pieces[count++] = {offset, size, static_cast<const u8*>(data)};
  }
};

// Components of guest state that are not in their initial configuration.
u64 xstate_in_use(const CpuState& state);
// Bytes of component `index` that an instruction touches: outside 64-bit mode only registers 0-7 exist.
u32 xsave_visible_size(unsigned index, bool code64);
// Bits of MXCSR that may be set.
u32 mxcsr_mask();

// An XSAVE instruction over the components `requested` (RFBM). `old_xstate_bv` is what the header in memory
// holds.
void plan_xsave(const CpuState& state, XsaveForm form, u64 requested, u64 old_xstate_bv, bool code64,
                XsaveWrites* writes);
// FXSAVE.
void plan_fxsave(const CpuState& state, bool code64, bool with_xmm, XsaveWrites* writes);

// Does XRSTOR (`compacted_allowed`: XRSTORS, or CPUID shows XSAVEC) accept this header and MXCSR? (SDM
// 1 13.8.1)
bool valid_xrstor(const XsaveHeader& header, u32 mxcsr, u64 xcr0, u64 requested, bool compacted_allowed);
// Bytes of the image that XRSTOR reads.
u32 xrstor_size(const XsaveHeader& header, u64 requested);
// Loads the components `requested` from `image`, which holds xrstor_size() bytes. The header is valid.
void apply_xrstor(CpuState& state, const u8* image, u64 requested, bool code64);
// FXRSTOR from 512 bytes whose MXCSR is valid.
void apply_fxrstor(CpuState& state, const u8* image, bool code64, bool with_xmm);

// Gives component `index` bytes of its own where it was in its initial configuration, so that they may be
// changed.
u8* xsave_component_for_change(CpuState& state, unsigned index);
// The bytes of component `index` as they are, be it in use or not.
const u8* xsave_component_bytes(const CpuState& state, unsigned index);

}  // namespace anykvm::x86
