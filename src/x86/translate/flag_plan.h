#pragma once
// Where a block keeps the guest's arithmetic flags, and how they are had again where it does not: whoever
// looks at them after a fault must see those that the last instruction left, though the code behind
// overwrites them unread (docs/decisions/translated-flags.md). Owner: one translation.

#include <array>

#include "x86/translate/decode.h"
#include "x86/translate/flag_recovery.h"
#include "x86/translate/policy.h"

namespace anykvm::x86 {

// What wrote the flags, to be done again with the registers as they were later.
struct FlagRecipe {
  FlagRecovery what;
  u8 before;      // number of another recipe, or kNoRecipe
  u16 registers;  // all that the recipe goes by
  u16 kept;       // a bit for each slot of Context::kept that it goes by
};

// Numbers of recipes, and these:
inline constexpr u8 kNoRecipe = 0xff;
inline constexpr u8 kRecipeImage = 0xfe;  // they are in Context::flags_image
// In the first round of a loop they are there, later by FlagPlan::round_recipe() (Context::later_round).
inline constexpr u8 kRecipeRound = 0xfd;

// An instruction's part.
struct FlagUse {
  // RFLAGS bits that later code may still read, or that there is no other way to have again.
  u32 live_before = kFlagsArithmetic, live_after = kFlagsArithmetic;
  u8 before = kNoRecipe, after = kNoRecipe;  // recipes
};

// Where a block wants the flags when it begins.
enum class EntryFlags : u8 {
  kIgnored,  // nowhere: they are overwritten before anybody can look at them
  kHost,
  kImage,
};

class FlagPlan {
 public:
  static constexpr unsigned kMost = 64;  // instructions
  static constexpr unsigned kMostRecipes = 96;
  static_assert(kMostRecipes < kRecipeRound);

  // The instructions of the block in their order. All must stay where they are until finish().
  void add(const Decoded& d, const Policy& policy, FlagUse* use);
  // `slow_writes`: a write to memory may end the block behind its instruction. `loops`: the last instruction
  // jumps back to the first.
  void finish(bool slow_writes, bool loops);

  EntryFlags entry() const { return m_entry; }
  // What gives the flags at the beginning of a round of the loop that is not the first; kNoRecipe: they are
  // in the image as in the first.
  u8 round_recipe() const { return m_round; }
  const FlagRecipe& operator[](u8 recipe) const { return m_recipes[recipe]; }
  // Are the flags before this instruction overwritten before anybody can look at them?
  bool ignored_before(unsigned instruction) const;
  // A register whose value says whether a round is the first; kNoRegister: Context::later_round does.
  u8 round_register() const { return m_round_register; }

  // The value of `gpr` before the instruction is wanted in a slot of Context::kept.
  struct Keep {
    u8 instruction, gpr, slot;
  };
  template <class Each>
  void each_kept(unsigned instruction, Each each) const {
    for (unsigned i = 0; i < m_keep_count; ++i) {
      if (m_keeps[i].instruction == instruction && (m_kept_used >> m_keeps[i].slot & 1)) each(m_keeps[i]);
    }
  }

 private:
  struct Step {
    const Decoded* d;
    const Policy* policy;
    FlagUse* use;
  };

  bool begins_in_image() const;
  void find_recipes();
  void find_live_flags(bool slow_writes);
  void find_round();
  u16 written_before_image_users() const;
  u8 counting_register(u16 excluded) const;
  void find_kept(bool slow_writes);
  void mark_rounds(u8 from, u8 to);
  u8 recipe_after(unsigned instruction, u8 before);
  u8 recipe_of_whole(unsigned instruction);
  u8 add_recipe(const FlagRecipe& recipe);
  u8 keep(unsigned instruction, u8 gpr);
  u8 without(u8 recipe, u16 registers, unsigned instruction);

  std::array<Step, kMost> m_steps;
  unsigned m_count = 0;
  std::array<FlagRecipe, kMostRecipes> m_recipes;
  u8 m_recipe_count = 0;
  std::array<Keep, FlagRecovery::kMostKept> m_keeps;
  u8 m_keep_count = 0;
  u16 m_kept_used = 0;
  u8 m_round = kNoRecipe, m_round_register = kNoRegister;
  EntryFlags m_entry = EntryFlags::kHost;
};

}  // namespace anykvm::x86
