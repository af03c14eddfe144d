#pragma once
// The host's side of translated code: which host register holds what, and operands in the Context (DESIGN
// D4). Owner: nobody; constants and small functions over an assembler. Only while generating code.
//
// Guest RSP lives in host R15; guest R10, R11 and R15 live in the Context, because R10 and R11 are scratch
// here. All other guest registers are in the host register of the same name.

#include <asmjit/x86.h>

#include <cstddef>

#include "x86/translate/context.h"

namespace anykvm::x86::host {

using asmjit::x86::Assembler;
using asmjit::x86::Gp;
using asmjit::x86::Mem;

inline const Gp kAddress = asmjit::x86::r10;  // addresses; "S0"
inline const Gp kScratch = asmjit::x86::r11;  // anything for a moment; "S1"
inline const Gp kGuestRsp = asmjit::x86::r15;

// The host register that holds guest register `gpr`, or kNoRegister if it lives in the Context.
constexpr u8 register_of(u8 gpr) {
  if (gpr == kRsp) return 15;
  if (gpr == kR10 || gpr == kR11 || gpr == kR15) return kNoRegister;
  return gpr;
}

inline Mem gs(std::size_t offset, u32 size = 8) {
  Mem memory = asmjit::x86::ptr_abs(offset, size);
  memory.setSegment(asmjit::x86::gs);
  return memory;
}
// gs:[offset + bytes]
inline Mem gs_at(std::size_t offset, const Gp& bytes) {
  Mem memory = asmjit::x86::ptr_abs(offset, bytes, 0, 8);
  memory.setSegment(asmjit::x86::gs);
  return memory;
}
// gs:[offset + index * 8]
inline Mem gs_indexed(std::size_t offset, const Gp& index) {
  Mem memory = asmjit::x86::ptr_abs(offset, index, 3, 8);
  memory.setSegment(asmjit::x86::gs);
  return memory;
}
inline Mem gpr_slot(u8 gpr, u32 size = 8) { return gs(offsetof(CpuState, gpr) + 8u * gpr, size); }

#define ANYKVM_GS(field) \
  ::anykvm::x86::host::gs(offsetof(::anykvm::x86::Context, field), sizeof(::anykvm::x86::Context::field))

// The same for code that has R11 to spare: RAX does not make a round through memory.
inline void save_flags_by_scratch(Assembler& a) {
  a.mov(kScratch, asmjit::x86::rax);
  a.lahf();
  a.seto(asmjit::x86::al);
  a.mov(gs(offsetof(Context, flags_image), 2), asmjit::x86::ax);
  a.mov(asmjit::x86::rax, kScratch);
}
inline void restore_flags_by(Assembler& a, const Gp& spare) {
  a.mov(spare, asmjit::x86::rax);
  a.movzx(asmjit::x86::eax, gs(offsetof(Context, flags_image), 2));
  a.add(asmjit::x86::al, 0x7f);  // OF comes back from the overflow of 1 + 7FH
  a.sahf();
  a.mov(asmjit::x86::rax, spare);
}

// Host flags to Context::flags_image; RAX is preserved through Context::spill.
inline void save_flags(Assembler& a) {
  a.mov(ANYKVM_GS(spill), asmjit::x86::rax);
  a.lahf();
  a.seto(asmjit::x86::al);
  a.mov(gs(offsetof(Context, flags_image), 2), asmjit::x86::ax);
  a.mov(asmjit::x86::rax, ANYKVM_GS(spill));
}

}  // namespace anykvm::x86::host
