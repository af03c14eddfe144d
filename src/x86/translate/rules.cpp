#include "x86/translate/rules.h"

#include "x86/translate/rules_families.h"

namespace anykvm::x86 {

void emit_rule(Emitter& e, const Decoded& d, const Policy& policy) {
  switch (policy.rule) {
    case Rule::kNone:
      break;
    case Rule::kjmp:
      return emit_jmp(e, d);
    case Rule::kcall:
      return emit_call(e, d);
    case Rule::kret:
      return emit_ret(e, d);
    case Rule::kjcc:
      return emit_jcc(e, d);
    case Rule::kjcxz:
      return emit_jcxz(e, d);
    case Rule::kloop:
      return emit_loop(e, d);
    case Rule::kpush:
      return emit_push(e, d);
    case Rule::kpop:
      return emit_pop(e, d);
    case Rule::kleave:
      return emit_leave(e, d);
    case Rule::klea:
      return emit_lea(e, d);
    case Rule::knop:
      return emit_nop(e, d);
    case Rule::kmoffs:
      return emit_moffs(e, d);
    case Rule::kbit_string:
      return emit_bit_string(e, d);
    case Rule::kstring:
      return emit_string(e, d, policy);
    case Rule::kgather:
      return emit_gather(e, d, policy);
    case Rule::kcli:
      return emit_cli(e);
    case Rule::ksti:
      return emit_sti(e, d, policy);
    case Rule::kpushf:
      return emit_pushf(e, d);
    case Rule::kpause:
      return emit_nop(e, d);
    case Rule::kdirection:
      return emit_direction(e, d);
    case Rule::kswapgs:
      return emit_swapgs(e);
    case Rule::krdtsc:
      return emit_rdtsc(e, d, policy);
  }
}

}  // namespace anykvm::x86
