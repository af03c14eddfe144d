#include "x86/translate/policy.h"

#include <Zydis/Zydis.h>

#include <array>

#include "x86/ops/gather_form.h"
#include "x86/ops/string_common.h"

namespace anykvm::x86 {
namespace {

using Table = std::array<Policy, ZYDIS_MNEMONIC_MAX_VALUE + 1>;

Table make_table() {
  Table table{};
  for (auto& row : table) row.kind = Policy::Kind::kAsIs;
#define ANYKVM_RULE(mnemonic, name) \
  table[ZYDIS_MNEMONIC_##mnemonic] = {Policy::Kind::kRule, Rule::k##name, nullptr, 0};
#define ANYKVM_HELPER(mnemonic, function, helper_flags) \
  table[ZYDIS_MNEMONIC_##mnemonic] = {Policy::Kind::kHelper, Rule::kNone, function, (helper_flags)};
#define ANYKVM_INLINE(mnemonic, name, function, helper_flags) \
  table[ZYDIS_MNEMONIC_##mnemonic] = {Policy::Kind::kHelper, Rule::k##name, function, (helper_flags)};
#define ANYKVM_UNDEFINED(mnemonic) table[ZYDIS_MNEMONIC_##mnemonic] = {};
#include "x86/tables/instructions.def"
#undef ANYKVM_RULE
#undef ANYKVM_HELPER
#undef ANYKVM_INLINE
#undef ANYKVM_UNDEFINED
  return table;
}

// Categories whose instructions are unprivileged and touch nothing but registers, flags and explicit memory
// operands.
bool runs_as_itself(u16 category) {
  switch (category) {
    case ZYDIS_CATEGORY_ADOX_ADCX:
    case ZYDIS_CATEGORY_AES:
    case ZYDIS_CATEGORY_AVX:
    case ZYDIS_CATEGORY_AVX2:
    case ZYDIS_CATEGORY_AVX512:
    case ZYDIS_CATEGORY_AVX512_4FMAPS:
    case ZYDIS_CATEGORY_AVX512_4VNNIW:
    case ZYDIS_CATEGORY_AVX512_BITALG:
    case ZYDIS_CATEGORY_AVX512_VBMI:
    case ZYDIS_CATEGORY_AVX512_VP2INTERSECT:
    case ZYDIS_CATEGORY_BINARY:
    case ZYDIS_CATEGORY_BITBYTE:
    case ZYDIS_CATEGORY_BLEND:
    case ZYDIS_CATEGORY_BMI1:
    case ZYDIS_CATEGORY_BMI2:
    case ZYDIS_CATEGORY_BROADCAST:
    case ZYDIS_CATEGORY_CLFLUSHOPT:
    case ZYDIS_CATEGORY_CLWB:
    case ZYDIS_CATEGORY_CMOV:
    case ZYDIS_CATEGORY_COMPRESS:
    case ZYDIS_CATEGORY_CONFLICT:
    case ZYDIS_CATEGORY_CONVERT:
    case ZYDIS_CATEGORY_DATAXFER:
    case ZYDIS_CATEGORY_EXPAND:
    case ZYDIS_CATEGORY_FCMOV:
    case ZYDIS_CATEGORY_FLAGOP:
    case ZYDIS_CATEGORY_FP16:
    case ZYDIS_CATEGORY_GFNI:
    case ZYDIS_CATEGORY_IFMA:
    case ZYDIS_CATEGORY_KMASK:
    case ZYDIS_CATEGORY_LOGICAL:
    case ZYDIS_CATEGORY_LOGICAL_FP:
    case ZYDIS_CATEGORY_LZCNT:
    case ZYDIS_CATEGORY_MISC:
    case ZYDIS_CATEGORY_MMX:
    case ZYDIS_CATEGORY_PCLMULQDQ:
    case ZYDIS_CATEGORY_RDRAND:
    case ZYDIS_CATEGORY_RDSEED:
    case ZYDIS_CATEGORY_ROTATE:
    case ZYDIS_CATEGORY_SEMAPHORE:
    case ZYDIS_CATEGORY_SETCC:
    case ZYDIS_CATEGORY_SHA:
    case ZYDIS_CATEGORY_SHIFT:
    case ZYDIS_CATEGORY_SSE:
    case ZYDIS_CATEGORY_STTNI:
    case ZYDIS_CATEGORY_VAES:
    case ZYDIS_CATEGORY_VBMI2:
    case ZYDIS_CATEGORY_VEX:  // AVX-VNNI and its like
    case ZYDIS_CATEGORY_VFMA:
    case ZYDIS_CATEGORY_VPCLMULQDQ:
    case ZYDIS_CATEGORY_X87_ALU:
    case ZYDIS_CATEGORY_MOVDIR:
      return true;
    default:
      return false;
  }
}

bool names_one_of_the_flags_not_ours(u16 mnemonic) {
  switch (mnemonic) {
    case ZYDIS_MNEMONIC_CMC:
    case ZYDIS_MNEMONIC_CLC:
    case ZYDIS_MNEMONIC_STC:
    case ZYDIS_MNEMONIC_LAHF:
    case ZYDIS_MNEMONIC_SAHF:
    case ZYDIS_MNEMONIC_SALC:
      return false;
    default:
      return true;
  }
}

Policy helper(Op function, u16 flags = 0) { return {Policy::Kind::kHelper, Rule::kNone, function, flags}; }
Policy rule(Rule which) { return {Policy::Kind::kRule, which, nullptr, 0}; }

bool is_cache_hint(u16 category) {
  switch (category) {
    case ZYDIS_CATEGORY_PREFETCH:
    case ZYDIS_CATEGORY_PREFETCHWT1:
    case ZYDIS_CATEGORY_WIDENOP:
    case ZYDIS_CATEGORY_NOP:
    case ZYDIS_CATEGORY_CLDEMOTE:
      return true;
    default:
      return false;
  }
}

Policy policy_of_mov(const Decoded& d) {
  if (d.insn.opcode_map == 1) {
    switch (d.insn.opcode) {
      case 0x20:
        return helper(op_mov_from_cr, kOpCpl0);
      case 0x22:
        return helper(op_mov_to_cr, kOpCpl0 | kOpEnd | kOpSerializes);
      case 0x21:
        return helper(op_mov_from_dr, kOpCpl0);
      case 0x23:
        return helper(op_mov_to_dr, kOpCpl0 | kOpEnd | kOpSerializes);
      default:
        return {};
    }
  }
  if (d.insn.opcode == 0x8c) return helper(op_mov_from_segment);
  if (d.insn.opcode == 0x8e) return helper(op_mov_to_segment, kOpEnd);
  if (d.insn.opcode >= 0xa0 && d.insn.opcode <= 0xa3) return rule(Rule::kmoffs);
  return {Policy::Kind::kAsIs, Rule::kNone, nullptr, 0};
}

bool is_segment_push_or_pop(const Insn& insn) {
  if (insn.opcode_map == 0) {
    switch (insn.opcode) {
      case 0x06:
      case 0x07:
      case 0x0e:
      case 0x16:
      case 0x17:
      case 0x1e:
      case 0x1f:
        return true;
      default:
        return false;
    }
  }
  return insn.opcode_map == 1 && (insn.opcode & 0xf6) == 0xa0;  // 0F A0, A1, A8, A9
}

bool is_far(const Insn& insn) {
  switch (insn.opcode) {
    case 0x9a:
    case 0xea:
    case 0xca:
    case 0xcb:
      return true;
    case 0xff:
      return (insn.reg & 7) == 3 || (insn.reg & 7) == 5;
    default:
      return false;
  }
}

bool string_form(const Decoded& d) { return d.category == ZYDIS_CATEGORY_STRINGOP; }

// One element or none, whole registers in the address and no segment base: of string instructions, XLAT and
// gathers.
bool has_plain_implied_operands(const Insn& insn) {
  const SegmentIndex segment = string_source_segment(insn);
  return !insn.rep && !insn.repne && insn.code_bits == 64 && insn.address_size == 8 && segment != kFs &&
         segment != kGs;
}

Policy implied_operands(const Insn& insn, Op function) {
  const Rule rule = has_plain_implied_operands(insn) ? Rule::kstring : Rule::kNone;
  return {Policy::Kind::kHelper, rule, function, 0};
}

}  // namespace

Policy policy_of(const Decoded& d) {
  static const Table table = make_table();
  const Insn& insn = d.insn;
  switch (insn.mnemonic) {
    case ZYDIS_MNEMONIC_MOV:
      return policy_of_mov(d);
    case ZYDIS_MNEMONIC_MOVSD:
      if (string_form(d)) return implied_operands(insn, op_movs);
      break;
    case ZYDIS_MNEMONIC_CMPSD:
      if (string_form(d)) return implied_operands(insn, op_cmps);
      break;
    case ZYDIS_MNEMONIC_PUSH:
      if (is_segment_push_or_pop(insn)) return helper(op_push_segment);
      break;
    case ZYDIS_MNEMONIC_POP:
      if (is_segment_push_or_pop(insn)) return helper(op_pop_segment, kOpEnd);
      if (insn.has_memory) return helper(op_pop_memory);
      break;
    case ZYDIS_MNEMONIC_JMP:
      if (is_far(insn)) return helper(op_far_jmp, kOpEnd);
      break;
    case ZYDIS_MNEMONIC_CALL:
      if (is_far(insn)) return helper(op_far_call, kOpEnd);
      break;
    case ZYDIS_MNEMONIC_RET:
      if (is_far(insn)) return helper(op_far_ret, kOpEnd);
      break;
    case ZYDIS_MNEMONIC_BT:
    case ZYDIS_MNEMONIC_BTS:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTC:
      // With a register bit offset the address depends on the offset.
      if (insn.has_memory && insn.opcode != 0xba)
        return {Policy::Kind::kHelper, Rule::kbit_string, op_bit_string, 0};
      break;
    case ZYDIS_MNEMONIC_NOP:
      // PREFETCHW's opcode with a register: a NOP or undefined, as the host has it (AMD's CPUs: #UD).
      if (insn.opcode_map == 1 && insn.opcode == 0x0d && !insn.has_memory)
        return {Policy::Kind::kAsIs, Rule::kNone, nullptr, 0};
      break;
    case ZYDIS_MNEMONIC_DAA:
    case ZYDIS_MNEMONIC_DAS:
    case ZYDIS_MNEMONIC_AAA:
    case ZYDIS_MNEMONIC_AAS:
    case ZYDIS_MNEMONIC_AAM:
    case ZYDIS_MNEMONIC_AAD:
    case ZYDIS_MNEMONIC_SALC:
      return helper(op_decimal);
    default:
      break;
  }
  const Policy& row = table[insn.mnemonic];
  if (string_form(d) || insn.mnemonic == ZYDIS_MNEMONIC_XLAT) return implied_operands(insn, row.helper);
  if (row.kind != Policy::Kind::kAsIs) return row;
  if (d.vsib) {
    const Rule gathers =
        has_plain_implied_operands(insn) && gather_form(insn).ok() ? Rule::kgather : Rule::kNone;
    return {Policy::Kind::kHelper, gathers, op_gather_scatter, kOpVector};
  }
  // Those with a VEX prefix are Knights Corner's.
  if (is_cache_hint(d.category)) return d.encoding == Encoding::kVex ? Policy{} : rule(Rule::knop);
  bool unknown_flag_op =
      d.category == ZYDIS_CATEGORY_FLAGOP && names_one_of_the_flags_not_ours(insn.mnemonic);
  if (d.hidden_memory) return {};
  bool unsupported = d.encoding == Encoding::kXop || d.encoding == Encoding::k3dnow || unknown_flag_op;
  if (unsupported || !runs_as_itself(d.category)) return {};
  return row;
}

bool inline_in(const Mode& mode, Rule rule) {
  switch (rule) {
    case Rule::kNone:
      return false;
    case Rule::kcli:
    case Rule::ksti:
      return mode.cpl == 0;  // elsewhere IOPL and VME decide
    case Rule::kpushf:
      return mode.protected_ && !mode.traps_inline;  // virtual-8086 mode has VME
    case Rule::kpause:
      return !mode.traps_inline;
    case Rule::kbit_string:
      return mode.code64();
    case Rule::kstring:
    case Rule::kgather:
      return mode.code64() && mode.direct_memory() && !mode.step;
    default:
      return true;
  }
}

Gate gate_of(const Decoded& d, const Policy& p, const Mode& mode, u64 cr0, u64 cr4) {
  if (p.kind == Policy::Kind::kUndefined) return Gate::kUd;
  if ((p.flags & kOpNot64) && mode.code64()) return Gate::kUd;
  if ((p.flags & kOpOnly64) && !mode.code64()) return Gate::kUd;
  if ((p.flags & kOpProtected) && !mode.protected_) return Gate::kUd;
  bool vex = d.encoding == Encoding::kVex || d.encoding == Encoding::kEvex;
  if (vex && !mode.protected_) return Gate::kUd;
  switch (d.vector) {
    case VectorClass::kNone:
      break;
    case VectorClass::kX87:
      if (d.insn.mnemonic == ZYDIS_MNEMONIC_FWAIT) {
        if (!mode.wait) return Gate::kNm;
      } else if (!mode.x87) {
        return Gate::kNm;
      }
      break;
    case VectorClass::kMmx:
      if (cr0 & kCr0Em) return Gate::kUd;
      if (cr0 & kCr0Ts) return Gate::kNm;
      break;
    case VectorClass::kSse:
      if ((cr0 & kCr0Em) || !(cr4 & kCr4Osfxsr)) return Gate::kUd;
      if (cr0 & kCr0Ts) return Gate::kNm;
      break;
    case VectorClass::kAvx:
    case VectorClass::kAvx512: {
      bool enabled = d.vector == VectorClass::kAvx ? mode.avx : mode.avx512;
      // The mode also folds CR0.TS in; XCR0 and OSXSAVE come first (SDM 2A 2.4, exception tables).
      if (!enabled) return (cr0 & kCr0Ts) && (cr4 & kCr4Osxsave) ? Gate::kNm : Gate::kUd;
      break;
    }
  }
  if ((p.flags & kOpCpl0) && mode.cpl != 0) return Gate::kGp;
  return Gate::kOpen;
}

}  // namespace anykvm::x86
