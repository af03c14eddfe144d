#pragma once
// REP MOVS and REP STOS upwards through pages that the TLB has, without C++. Owner: CodeCache (Thunks).

#include "x86/translate/host.h"

namespace anykvm::x86 {

// A thunk that blocks call with R10 = HelperSite*, R11 = offset of the TlbTable in the Context and flags in
// the image, in 64-bit mode. `moves`: MOVS, else STOS; `shift`: the binary logarithm of the element's size.
// Page by page, as far as it gets; what remains is the instruction again, and goes to `helper`, the thunk
// that calls its function.
void make_string_thunk(asmjit::x86::Assembler& a, bool moves, unsigned shift, const u8* helper);

}  // namespace anykvm::x86
