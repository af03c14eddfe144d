#pragma once
// Direct jumps to other pages. Such a jump goes through a place of its own in the vCPU's Context:
//
//   mov r11d, FarLink      jmp gs:[target of its number]
//
// which leads to the target's code, or, while it is empty, to a thunk that looks into the jump cache, and now
// and then fills the place from there (anykvm_follow_far_link). So flags stay where they are, and the code in
// between is short. Before any vCPU has filled its place, the second instruction is a jump to the thunk:
// processors are slower ever after with an indirect jump that has led to two targets.
//
// A place is right as long as the entry of the jump cache that it was filled from would be, so all
// that flushes those empties places, too (Context). Owner: FarLinks, Context of one vCPU, only its thread but
// for prepare(); FarLinkNumbers, CodeCache, whose mutex is held.

#include <algorithm>
#include <vector>

#include "base/types.h"
#include "x86/mmu/entry_set.h"
#include "x86/translate/block.h"

namespace anykvm::x86 {

inline constexpr u32 kFarLinks = 131072;
inline constexpr u32 kNoFarLink = ~u32{0};

// One in so many that find their place empty fills it. So code that runs once or twice, or is flushed soon,
// goes by the jump cache, which has one entry for all that jump to the same.
inline constexpr u32 kFarMissesAside = 32;

// What the thunk knows of a jump. As long as its code.
struct FarLink {
  u64 target = 0;              // RIP; in a block that roams, from its linear page on
  u32 flags_in_image : 1 = 0;  // else they are in the host's register
  u32 site : 31 = 0;           // eighths of the distance of the jump to its place in the code memory
  u16 pair = 0;                // half the number
  u16 code_page = 0;           // Block::code_page; 0: does not roam
  u32 number() const { return 2u * pair + flags_in_image; }
};

// SAFETY: only ever made in a Context, so what no initializer names is zero.
struct FarLinks {
  u64 target[kFarLinks];  // host code

  // `thunks`: where empty places lead, for even and for odd numbers.
  void begin(const u8* const (&thunks)[2]) {
    for (unsigned odd : {0u, 1u}) m_empty[odd] = reinterpret_cast<u64>(thunks[odd]);
  }
  // Before anybody has one of these numbers, so by any thread.
  void prepare(u32 first, u32 end) {
    for (u32 number = first; number < end; ++number) empty(number);
  }
  // `global`: to a global page, from code that is at one address.
  void fill(const FarLink& link, u64 to, bool global) {
    u64& place = target[link.number()];
    if (place == m_empty[link.flags_in_image]) m_journal[global][m_filled[global]++] = link.number();
    place = to;
    m_to.add(target_number(to));
    m_from.add(link.code_page);
  }
  u32 filled() const { return m_filled[0] + m_filled[1]; }
  // Is a place filled of a jump in this page's code that roams?
  bool leads_from(u16 code_page) const { return m_from.has(code_page); }

  void forget_all() {
    forget(m_filled[1], m_journal[1]);
    forget_local();
    m_to.clear();
  }
  void forget_local() {
    forget(m_filled[0], m_journal[0]);
    m_from.clear();
  }
  // Those that lead to a block which is dead.
  void forget_to(const Block& block) {
    if (!leads_to(block)) return;
    for (unsigned global : {0u, 1u}) forget_to(block, m_filled[global], m_journal[global]);
  }

 private:
  static constexpr unsigned kTargetNumbers = 65536;
  static constexpr unsigned target_number(u64 code) { return (code >> 3) % kTargetNumbers; }
  static u64 address(const u8* code) { return reinterpret_cast<u64>(code); }
  // May be true of others, too.
  bool leads_to(const Block& block) const {
    return m_to.has(target_number(address(block.code_image()))) ||
           m_to.has(target_number(address(block.code_host())));
  }
  void empty(u32 number) { target[number] = m_empty[number & 1]; }
  void forget(u32& filled, const u32* journal) {
    for (u32 i = 0; i < filled; ++i) empty(journal[i]);
    filled = 0;
  }
  void forget_to(const Block& block, u32& filled, u32* journal) {
    const u64 image = address(block.code_image()), host = address(block.code_host());
    for (u32 i = 0; i < filled;) {
      const u64 to = target[journal[i]];
      if (to == image || to == host) {
        empty(journal[i]);
        journal[i] = journal[--filled];
      } else {
        ++i;
      }
    }
  }

  u64 m_empty[2];
  u32 m_filled[2];
  u32 m_journal[2][kFarLinks];    // filled places; the second: to global pages
  EntrySet<kTargetNumbers> m_to;  // where filled places lead, or have led
  EntrySet<kCodePages> m_from;    // Block::code_page of jumps whose places are filled, but for global ones
};

// Hands out numbers to translations. Even ones are of jumps with the flags in the host's register, odd ones
// of those with flags in the image. Places take memory once their numbers are near.
class FarLinkNumbers {
 public:
  // kNoFarLink: none left.
  u32 next(bool flags_in_host) {
    u32& used = m_used[!flags_in_host];
    if (used == kFarLinks / 2) return kNoFarLink;
    const u32 number = 2 * used++ + u32{!flags_in_host};
    if (number >= m_prepared) prepare_more();
    return number;
  }
  // Nobody uses any of them any more.
  void take_back() { m_used[0] = m_used[1] = 0; }

  void add(FarLinks& links) {
    m_all.push_back(&links);
    links.prepare(0, m_prepared);
  }
  void remove(FarLinks& links) { std::erase(m_all, &links); }

 private:
  static constexpr u32 kAtOnce = 1024;
  static_assert(kFarLinks % kAtOnce == 0);
  void prepare_more() {
    for (FarLinks* links : m_all) links->prepare(m_prepared, m_prepared + kAtOnce);
    m_prepared += kAtOnce;
  }

  u32 m_used[2] = {};
  u32 m_prepared = 0;
  std::vector<FarLinks*> m_all;
};

}  // namespace anykvm::x86
