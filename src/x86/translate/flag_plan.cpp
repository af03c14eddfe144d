#include "x86/translate/flag_plan.h"

#include <Zydis/Zydis.h>

#include <optional>

#include "base/bits.h"
#include "base/optimizations.h"
#include "x86/translate/access_groups.h"

namespace anykvm::x86 {
namespace {

constexpr u16 mask_of(u8 gpr) { return static_cast<u16>(1u << gpr); }

bool is_rule(const Policy& policy, Rule rule) {
  return policy.kind == Policy::Kind::kRule && policy.rule == rule;
}

// Instructions on general registers that no host is without. Others may be #UD: forms of 3DNow!, for one.
bool every_host_has(const Decoded& d) {
  const u8 opcode = d.insn.opcode;
  if (d.insn.opcode_map != 1) return d.insn.opcode_map == 0 || d.encoding == Encoding::kVex;
  const bool moves = (opcode & 0xf0) == 0x40 || (opcode & 0xf0) == 0x90;  // CMOVcc, SETcc
  const bool others = opcode >= 0xa3 && opcode <= 0xcf;                   // BT to BSWAP, but for system ones
  return moves || others || opcode == 0x1f;
}

// May control leave in the middle of it, or its check of memory or vector state overwrite the host's flags?
bool may_leave(const Decoded& d, const Policy& policy) {
  if (policy.kind == Policy::Kind::kRule) {
    return policy.rule == Rule::kpush || policy.rule == Rule::kpop || policy.rule == Rule::kleave ||
           policy.rule == Rule::kmoffs || policy.rule == Rule::kbit_string;
  }
  if (policy.kind != Policy::Kind::kAsIs) return false;
  const bool divides = d.insn.mnemonic == ZYDIS_MNEMONIC_DIV || d.insn.mnemonic == ZYDIS_MNEMONIC_IDIV;
  return divides || !every_host_has(d) || d.vector != VectorClass::kNone ||
         (d.insn.has_memory && d.insn.memory.size != 0);
}

// Does it hand all flags on to somebody: C++, memory, another block?
bool hands_flags_on(const Policy& policy) {
  if (policy.kind == Policy::Kind::kHelper || policy.kind == Policy::Kind::kUndefined) return true;
  if (policy.kind != Policy::Kind::kRule) return false;
  switch (policy.rule) {
    case Rule::kpushf:
    case Rule::kjcc:
    case Rule::ksti:    // the helper that takes its place
    case Rule::krdtsc:  // as well
    case Rule::kstring:
    case Rule::kgather:
      return true;
    default:
      return false;
  }
}

// Does it want the flags in the image?
bool saves_flags(const Decoded& d, const Policy& policy) {
  if (policy.kind == Policy::Kind::kHelper || policy.kind == Policy::Kind::kUndefined) return true;
  if (policy.kind != Policy::Kind::kRule) return false;
  constexpr u8 kIndirect = 0xff;
  const bool jumps = is_rule(policy, Rule::kjmp) && d.insn.opcode == kIndirect;
  return jumps || policy.rule == Rule::kcall || policy.rule == Rule::kret || policy.rule == Rule::kpushf ||
         policy.rule == Rule::ksti || policy.rule == Rule::krdtsc || policy.rule == Rule::kstring ||
         policy.rule == Rule::kgather;
}

// Does it look at the host's flags, or leave some of them as they are?
bool wants_flags_in_host(const Decoded& d, const Policy& policy) {
  if (policy.kind == Policy::Kind::kRule)
    return policy.rule == Rule::kjcc || policy.rule == Rule::kjcxz || policy.rule == Rule::kloop;
  return d.flags_read || (d.flags_written && d.flags_killed != kFlagsArithmetic);
}

// --- Recipes ---

// The operands of an instruction on general registers that ends with the flags of its result.
struct Operands {
  u8 first = kNoRegister, second = kNoRegister;  // the latter: none for an immediate
  bool second_in_memory = false;
};

// The forms of SDM 2D appendix A that ADD, OR, ADC, SBB, AND, SUB, XOR, CMP and TEST share.
std::optional<Operands> arithmetic_operands(const Insn& insn) {
  if (insn.opcode_map != 0) return {};
  if (insn.opcode == 0x84 || insn.opcode == 0x85) return Operands{insn.rm, insn.reg, insn.has_memory};
  if (insn.opcode == 0xa8 || insn.opcode == 0xa9) return Operands{kRax};
  const bool group =
      (insn.opcode >= 0x80 && insn.opcode <= 0x83) || insn.opcode == 0xf6 || insn.opcode == 0xf7;
  if (group) return insn.has_memory ? std::nullopt : std::optional(Operands{insn.rm});
  if (insn.opcode >= 0x40) return {};
  switch (insn.opcode & 7) {
    case 0:
    case 1:
      return insn.has_memory ? std::nullopt : std::optional(Operands{insn.rm, insn.reg});
    case 2:
    case 3:
      if (insn.has_memory) return Operands{insn.reg, kNoRegister, true};
      return Operands{insn.reg, insn.rm};
    default:
      return Operands{kRax};
  }
}

FlagRecipe recipe_of(FlagRecovery::Kind kind, const Insn& insn, u8 gpr) {
  return {.what = {.kind = kind,
                   .size = insn.operand_size,
                   .first = gpr,
                   .other = kNoRegister,
                   .immediate = 0,
                   .before = nullptr},
          .before = kNoRecipe,
          .registers = mask_of(gpr),
          .kept = 0};
}

FlagRecipe with_second(FlagRecipe recipe, const Operands& operands, const Insn& insn) {
  recipe.what.other = operands.second;
  if (operands.second != kNoRegister) recipe.registers |= mask_of(operands.second);
  recipe.what.immediate = static_cast<i32>(sign_extend(insn.immediate, 8u * insn.operand_size));
  return recipe;
}

std::optional<FlagRecipe> arithmetic_recipe(const Insn& insn) {
  using Kind = FlagRecovery::Kind;
  const auto operands = arithmetic_operands(insn);
  if (!operands) return {};
  const bool same = operands->first == operands->second, known = !operands->second_in_memory;
  const auto by_both = [&](Kind kind) {
    return with_second(recipe_of(kind, insn, operands->first), *operands, insn);
  };
  switch (insn.mnemonic) {
    case ZYDIS_MNEMONIC_CMP:
      return known ? std::optional(by_both(Kind::kCompare)) : std::nullopt;
    case ZYDIS_MNEMONIC_TEST:
      return known ? std::optional(by_both(Kind::kTest)) : std::nullopt;
    case ZYDIS_MNEMONIC_AND:
    case ZYDIS_MNEMONIC_OR:
    case ZYDIS_MNEMONIC_XOR: {
      FlagRecipe recipe = recipe_of(Kind::kTest, insn, operands->first);
      recipe.what.other = operands->first;
      return recipe;
    }
    case ZYDIS_MNEMONIC_ADD:  // twice a number does not say what it was
      return known && !same ? std::optional(by_both(Kind::kAdd)) : std::nullopt;
    case ZYDIS_MNEMONIC_SUB:
      return known ? std::optional(by_both(same ? Kind::kCompare : Kind::kSubtract)) : std::nullopt;
    default:
      return {};
  }
}

// Of shifts and rotates by a constant.
std::optional<FlagRecipe> with_count(FlagRecipe recipe, const Insn& insn) {
  const bool by_count = insn.opcode == 0xd2 || insn.opcode == 0xd3;
  const bool by_one = insn.opcode == 0xd0 || insn.opcode == 0xd1;
  if (insn.opcode_map != 0 || by_count) return {};
  recipe.what.immediate = by_one ? 1 : static_cast<i32>(insn.immediate & (insn.operand_size == 8 ? 63 : 31));
  return recipe.what.immediate ? std::optional(recipe) : std::nullopt;
}

// Of those that leave flags as they were.
std::optional<FlagRecipe> partial_recipe(const Insn& insn) {
  using Kind = FlagRecovery::Kind;
  if (insn.has_memory) return {};
  switch (insn.mnemonic) {
    case ZYDIS_MNEMONIC_INC:
      return recipe_of(Kind::kIncrement, insn, insn.rm);
    case ZYDIS_MNEMONIC_DEC:
      return recipe_of(Kind::kDecrement, insn, insn.rm);
    case ZYDIS_MNEMONIC_ROL:
    case ZYDIS_MNEMONIC_ROR: {
      if (insn.operand_size < 4) return {};
      const bool left = insn.mnemonic == ZYDIS_MNEMONIC_ROL;
      return with_count(recipe_of(left ? Kind::kRotateLeft : Kind::kRotateRight, insn, insn.rm), insn);
    }
    default:
      return {};
  }
}

// Of those whose result does not say what their operand was.
std::optional<FlagRecipe> operand_recipe(const Insn& insn) {
  using Kind = FlagRecovery::Kind;
  if (insn.has_memory) return {};
  switch (insn.mnemonic) {
    case ZYDIS_MNEMONIC_ADD:
      return recipe_of(Kind::kDouble, insn, insn.rm);
    case ZYDIS_MNEMONIC_SHL:
      return with_count(recipe_of(Kind::kShiftLeft, insn, insn.rm), insn);
    case ZYDIS_MNEMONIC_SHR:
      return with_count(recipe_of(Kind::kShiftRight, insn, insn.rm), insn);
    case ZYDIS_MNEMONIC_SAR:
      return with_count(recipe_of(Kind::kShiftRightArithmetic, insn, insn.rm), insn);
    default:
      return {};
  }
}

std::optional<FlagRecipe> whole_recipe(const Insn& insn) {
  if (insn.mnemonic == ZYDIS_MNEMONIC_NEG && !insn.has_memory)
    return recipe_of(FlagRecovery::Kind::kNegate, insn, insn.rm);
  return arithmetic_recipe(insn);
}

}  // namespace

void FlagPlan::add(const Decoded& d, const Policy& policy, FlagUse* use) {
  m_steps[m_count++] = {&d, &policy, use};
}

void FlagPlan::finish(bool slow_writes, bool loops) {
  m_entry = begins_in_image() ? EntryFlags::kImage : EntryFlags::kHost;
  find_recipes();
  if (loops && m_entry == EntryFlags::kImage) find_round();
  find_live_flags(slow_writes);
  if (m_round != kNoRecipe && m_steps[0].use->live_before) {
    // They are really needed.
    m_round = kNoRecipe;
    mark_rounds(kRecipeRound, kRecipeImage);
  }
  find_kept(slow_writes);
  if (ignored_before(0)) m_entry = EntryFlags::kIgnored;
}

// Where the first to deal with flags would have to save them.
bool FlagPlan::begins_in_image() const {
  for (unsigned i = 0; i < m_count; ++i) {
    const Decoded& d = *m_steps[i].d;
    const Policy& policy = *m_steps[i].policy;
    if (may_leave(d, policy) || saves_flags(d, policy)) return true;
    if (wants_flags_in_host(d, policy) || d.flags_written) return false;
  }
  return false;
}

bool FlagPlan::ignored_before(unsigned instruction) const {
  u32 killed = 0;
  for (unsigned i = instruction; i < m_count; ++i) {
    const Decoded& d = *m_steps[i].d;
    const Policy& policy = *m_steps[i].policy;
    if (may_leave(d, policy) || hands_flags_on(policy) || saves_flags(d, policy)) return false;
    if (policy.kind == Policy::Kind::kRule && policy.rule != Rule::klea && policy.rule != Rule::knop)
      return false;
    if (d.flags_read & ~killed) return false;
    killed |= d.flags_killed;
    if (killed == kFlagsArithmetic) return optimizations().flags;
  }
  return false;
}

void FlagPlan::find_recipes() {
  u8 now = m_entry == EntryFlags::kImage ? kRecipeImage : kNoRecipe;
  for (unsigned i = 0; i < m_count; ++i) {
    m_steps[i].use->before = now;
    now = recipe_after(i, now);
    m_steps[i].use->after = now;
  }
}

u8 FlagPlan::recipe_after(unsigned instruction, u8 before) {
  const Decoded& d = *m_steps[instruction].d;
  const Policy& policy = *m_steps[instruction].policy;
  if (saves_flags(d, policy)) return kRecipeImage;
  const bool written =
      d.flags_written && (policy.kind == Policy::Kind::kAsIs || is_rule(policy, Rule::kbit_string));
  const bool whole = d.flags_killed == kFlagsArithmetic;
  if (written && (d.high_byte || whole)) return d.high_byte ? kNoRecipe : recipe_of_whole(instruction);
  std::optional<FlagRecipe> partial;
  if (written && !(partial = partial_recipe(d.insn))) return kNoRecipe;
  if (before >= m_recipe_count) return written ? kNoRecipe : before;
  before = without(before, d.gprs_written, instruction);
  if (!partial || before == kNoRecipe) return before;
  partial->before = before;
  partial->registers |= m_recipes[before].registers;
  partial->kept = m_recipes[before].kept;
  return add_recipe(*partial);
}

u8 FlagPlan::recipe_of_whole(unsigned instruction) {
  const Insn& insn = m_steps[instruction].d->insn;
  const auto recipe = whole_recipe(insn);
  if (recipe) return add_recipe(*recipe);
  auto by_operand = operand_recipe(insn);
  if (!by_operand) return kNoRecipe;
  return without(add_recipe(*by_operand), by_operand->registers, instruction);
}

u8 FlagPlan::add_recipe(const FlagRecipe& recipe) {
  if (m_recipe_count == kMostRecipes) return kNoRecipe;
  m_recipes[m_recipe_count] = recipe;
  return m_recipe_count++;
}

// The operand that stands for `gpr` once the instruction has given it another value.
u8 FlagPlan::keep(unsigned instruction, u8 gpr) {
  for (unsigned i = 0; i < m_keep_count; ++i) {
    if (m_keeps[i].instruction == instruction && m_keeps[i].gpr == gpr)
      return static_cast<u8>(FlagRecovery::kFirstKept + i);
  }
  if (m_keep_count == FlagRecovery::kMostKept) return kNoRegister;
  m_keeps[m_keep_count] = {static_cast<u8>(instruction), gpr, m_keep_count};
  return static_cast<u8>(FlagRecovery::kFirstKept + m_keep_count++);
}

// The recipe behind an instruction that writes to `registers`.
u8 FlagPlan::without(u8 number, u16 registers, unsigned instruction) {
  if (number == kNoRecipe || !(m_recipes[number].registers & registers)) return number;
  FlagRecipe recipe = m_recipes[number];
  for (u8* operand : {&recipe.what.first, &recipe.what.other}) {
    if (*operand >= 16 || !(registers >> *operand & 1)) continue;
    const u8 kept = keep(instruction, *operand);
    if (kept == kNoRegister) return kNoRecipe;
    *operand = kept;
    recipe.kept |= static_cast<u16>(1u << (kept - FlagRecovery::kFirstKept));
  }
  if (recipe.before != kNoRecipe) {
    recipe.before = without(recipe.before, registers, instruction);
    if (recipe.before == kNoRecipe) return kNoRecipe;
    recipe.kept |= m_recipes[recipe.before].kept;
  }
  recipe.registers &= static_cast<u16>(~registers);
  return add_recipe(recipe);
}

// Backwards: flags are live before an instruction if it reads them or needs them, or if they are live after
// and it does not overwrite them. Helpers see all of RFLAGS; ways out of a block and its end hand them on.
void FlagPlan::find_live_flags(bool slow_writes) {
  constexpr u32 kAll = kFlagsArithmetic;
  u32 live = kAll;
  for (unsigned i = m_count; i-- > 0;) {
    const Decoded& d = *m_steps[i].d;
    const Policy& policy = *m_steps[i].policy;
    FlagUse& use = *m_steps[i].use;
    const bool leaves = may_leave(d, policy);
    if (slow_writes && leaves && use.after == kNoRecipe) live = kAll;
    use.live_after = live;
    const bool all = hands_flags_on(policy) || (leaves && use.before == kNoRecipe) || !optimizations().flags;
    live = all ? kAll : (live & ~d.flags_killed) | d.flags_read;
    use.live_before = live;
  }
}

// A jump back to the beginning need not save flags for those who look at them there, if they are to be had
// again until then.
void FlagPlan::find_round() {
  const u8 end = m_steps[m_count - 1].use->after;
  const u16 written = written_before_image_users();
  if (end >= m_recipe_count || (m_recipes[end].registers & written)) return;
  m_round = end;
  m_round_register = counting_register(written);
  mark_rounds(kRecipeImage, kRecipeRound);
}

u16 FlagPlan::written_before_image_users() const {
  u16 written = 0, before_last = 0;
  for (unsigned i = 0; i < m_count && m_steps[i].use->before == kRecipeImage; ++i) {
    if (may_leave(*m_steps[i].d, *m_steps[i].policy)) before_last = written;
    written |= m_steps[i].d->gprs_written;
  }
  return before_last;
}

// One that does not come back to the value of the first round: at a cycle a round that takes weeks.
u8 FlagPlan::counting_register(u16 excluded) const {
  constexpr i64 kLongestStep = 1 << 12;
  std::array<i64, 16> moved{};
  for (unsigned i = 0; i < m_count; ++i) {
    const Decoded& d = *m_steps[i].d;
    const Policy& policy = *m_steps[i].policy;
    const bool as_is = policy.kind == Policy::Kind::kAsIs || is_rule(policy, Rule::klea);
    u8 gpr = 0;
    i64 constant = 0;
    if (as_is && adds_constant(d, &gpr, &constant)) {
      moved[gpr] += constant;
    } else {
      excluded |= d.gprs_written;
    }
  }
  for (u8 gpr = 0; gpr < 16; ++gpr) {
    const bool counts = moved[gpr] && moved[gpr] <= kLongestStep && moved[gpr] >= -kLongestStep;
    if (counts && !(excluded & mask_of(gpr))) return gpr;
  }
  return kNoRegister;
}

// Which slots somebody goes by.
void FlagPlan::find_kept(bool slow_writes) {
  const auto use = [this](u8 recipe) {
    if (recipe < m_recipe_count) m_kept_used |= m_recipes[recipe].kept;
  };
  for (unsigned i = 0; i < m_count; ++i) {
    const FlagUse& flags = *m_steps[i].use;
    const bool leaves = may_leave(*m_steps[i].d, *m_steps[i].policy);
    if (leaves && flags.live_before != kFlagsArithmetic) use(flags.before);
    if (slow_writes && leaves) use(flags.after);
  }
  const Step& last = m_steps[m_count - 1];
  const bool back = static_cast<i64>(last.d->insn.immediate) < 0;
  if (back && (is_rule(*last.policy, Rule::kjcc) || is_rule(*last.policy, Rule::kjmp))) use(last.use->after);
}

void FlagPlan::mark_rounds(u8 from, u8 to) {
  for (unsigned i = 0; i < m_count; ++i) {
    FlagUse& use = *m_steps[i].use;
    if (use.before == from) use.before = to;
    if (use.after == from) use.after = to;
  }
}

}  // namespace anykvm::x86
