#pragma once
// How single instructions become host code: as themselves, or by the rules of tables/instructions.def.
// Owner: one translation. Only while CodeCache's mutex is held.

#include "x86/translate/emitter.h"
#include "x86/translate/policy.h"

namespace anykvm::x86 {

// The instruction as itself, with its registers mapped and its memory operand redirected (rules_as_is.cpp).
void emit_as_is(Emitter& e, const Decoded& decoded);

// One of the rows marked ANYKVM_RULE or ANYKVM_INLINE.
void emit_rule(Emitter& e, const Decoded& decoded, const Policy& policy);

}  // namespace anykvm::x86
