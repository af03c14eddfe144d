#pragma once
// The rules themselves, one function a row family of tables/instructions.def; rules.cpp dispatches to them.
// Owner: one translation.

#include "x86/translate/rules.h"

namespace anykvm::x86 {

void emit_jmp(Emitter& e, const Decoded& d);
void emit_call(Emitter& e, const Decoded& d);
void emit_ret(Emitter& e, const Decoded& d);
void emit_jcc(Emitter& e, const Decoded& d);
void emit_jcxz(Emitter& e, const Decoded& d);
void emit_loop(Emitter& e, const Decoded& d);

void emit_push(Emitter& e, const Decoded& d);
void emit_pop(Emitter& e, const Decoded& d);
void emit_leave(Emitter& e, const Decoded& d);
void emit_lea(Emitter& e, const Decoded& d);
void emit_moffs(Emitter& e, const Decoded& d);
void emit_nop(Emitter& e, const Decoded& d);

void emit_bit_string(Emitter& e, const Decoded& d);

void emit_string(Emitter& e, const Decoded& d, const Policy& policy);

void emit_gather(Emitter& e, const Decoded& d, const Policy& policy);

void emit_cli(Emitter& e);
void emit_sti(Emitter& e, const Decoded& d, const Policy& policy);
void emit_pushf(Emitter& e, const Decoded& d);
void emit_direction(Emitter& e, const Decoded& d);
void emit_swapgs(Emitter& e);
void emit_rdtsc(Emitter& e, const Decoded& d, const Policy& policy);

}  // namespace anykvm::x86
