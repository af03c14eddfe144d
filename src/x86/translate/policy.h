#pragma once
// How each instruction is translated: as itself, by a rule of the translator, by a C++ helper, or not at all
// (#UD). Owner: nobody; lookups in constant tables. Any thread.

#include "x86/ops/ops.h"
#include "x86/translate/decode.h"
#include "x86/translate/mode.h"

namespace anykvm::x86 {

enum HelperFlags : u16 {
  kOpEnd = 1,
  kOpCpl0 = 2,
  kOpNot64 = 4,
  kOpOnly64 = 8,
  kOpProtected = 16,
  kOpVector = 32,
  kOpKeepsVector = 64,
  kOpSerializes = 128,
};

enum class Rule : u8 {
  kNone,
  kjmp,
  kcall,
  kret,
  kjcc,
  kjcxz,
  kloop,
  kpush,
  kpop,
  kleave,
  klea,
  knop,
  kmoffs,
  kbit_string,
  kstring,
  kgather,
  kcli,
  ksti,
  kpushf,
  kpause,
  kdirection,
  kswapgs,
  krdtsc
};

struct Policy {
  enum class Kind : u8 { kUndefined, kAsIs, kRule, kHelper } kind = Kind::kUndefined;
  Rule rule = Rule::kNone;  // kHelper: in its place where inline_in() says so
  Op helper = nullptr;
  u16 flags = 0;
};

Policy policy_of(const Decoded& decoded);

// May the rule stand in for the helper?
bool inline_in(const Mode& mode, Rule rule);

// The fault that the instruction raises in this mode before doing anything: #UD, #NM or #GP(0) by CPL and
// enabled state.
enum class Gate : u8 { kOpen, kUd, kNm, kGp };
Gate gate_of(const Decoded& decoded, const Policy& policy, const Mode& mode, u64 cr0, u64 cr4);

}  // namespace anykvm::x86
