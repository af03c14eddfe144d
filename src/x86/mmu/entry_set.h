#pragma once
// A set of entry numbers below `kSize`: what a flush has to visit. Bits, and above them a bit for each word
// that may have one, and above those the same again in a large set, so that one with few entries is emptied
// fast. Owner: the table whose entries these are.

#include <bit>

#include "base/bits.h"
#include "base/types.h"

namespace anykvm::x86 {

// SAFETY: zeros are an empty set, and nothing else makes them: the owner is in zeroed memory, or says `{}`.
template <unsigned kSize>
class EntrySet {
 public:
  void add(unsigned entry) {
    m_words[entry / 64] |= bit(entry % 64);
    m_used[entry / 4096] |= bit(entry / 64 % 64);
    if constexpr (kLarge) m_above[entry / 262144] |= bit(entry / 4096 % 64);
  }
  void remove(unsigned entry) { m_words[entry / 64] &= ~bit(entry % 64); }
  bool has(unsigned entry) const { return has_bit(m_words[entry / 64], entry % 64); }

  void clear() {
    take_all([](unsigned) {});
  }

  // Calls `visit` with each entry.
  template <class Visit>
  void for_each(Visit visit) const {
    for_each_word([&](unsigned i) { visit_bits(m_words[i], i, visit); });
  }

  // The same, and leaves the set empty.
  template <class Visit>
  void take_all(Visit visit) {
    for_each_word([&](unsigned i) {
      visit_bits(m_words[i], i, visit);
      m_words[i] = 0;
    });
    for_each_used([this](unsigned i) { m_used[i] = 0; });
    if constexpr (kLarge)
      for (u64& above : m_above) above = 0;
  }

 private:
  template <class Visit>
  static void visit_bits(u64 word, unsigned number, Visit visit) {
    for (; word; word &= word - 1) visit(number * 64 + static_cast<unsigned>(std::countr_zero(word)));
  }
  template <class Visit>
  void for_each_word(Visit visit) const {
    for_each_used([&](unsigned i) { visit_bits(m_used[i], i, visit); });
  }
  template <class Visit>
  void for_each_used(Visit visit) const {
    if constexpr (kLarge) {
      for (unsigned i = 0; i < kAbove; ++i) visit_bits(m_above[i], i, visit);
    } else {
      for (unsigned i = 0; i < kUsed; ++i) visit(i);
    }
  }

  static constexpr unsigned kUsed = (kSize + 4095) / 4096, kAbove = (kUsed + 63) / 64;
  static constexpr bool kLarge = kUsed > 4;
  u64 m_words[kSize / 64];
  u64 m_used[kUsed];
  u64 m_above[kAbove];
};

}  // namespace anykvm::x86
