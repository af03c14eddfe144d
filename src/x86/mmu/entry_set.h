#pragma once
// A set of entry numbers below `kSize`: what a flush has to visit. Bits, and above them a bit for each word
// that may have one, so that a large set with few entries is emptied fast. Owner: the table whose entries
// these are.

#include <bit>

#include "base/bits.h"
#include "base/types.h"

namespace anykvm::x86 {

template <unsigned kSize>
class EntrySet {
 public:
  void add(unsigned entry) {
    m_words[entry / 64] |= bit(entry % 64);
    m_used[entry / 4096] |= bit(entry / 64 % 64);
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
    for (u64& used : m_used) used = 0;
  }

 private:
  template <class Visit>
  static void visit_bits(u64 word, unsigned number, Visit visit) {
    for (; word; word &= word - 1) visit(number * 64 + static_cast<unsigned>(std::countr_zero(word)));
  }
  template <class Visit>
  void for_each_word(Visit visit) const {
    for (unsigned i = 0; i < kUsed; ++i) visit_bits(m_used[i], i, visit);
  }

  static constexpr unsigned kUsed = (kSize + 4095) / 4096;
  u64 m_words[kSize / 64] = {};
  u64 m_used[kUsed] = {};
};

}  // namespace anykvm::x86
