#pragma once
// A set of entry numbers below `kSize`: what a flush has to visit. Owner: the table whose entries these are.

#include <bit>

#include "base/bits.h"
#include "base/types.h"

namespace anykvm::x86 {

template <unsigned kSize>
class EntrySet {
 public:
  void add(unsigned entry) { m_words[entry / 64] |= bit(entry % 64); }
  void remove(unsigned entry) { m_words[entry / 64] &= ~bit(entry % 64); }
  bool has(unsigned entry) const { return has_bit(m_words[entry / 64], entry % 64); }

  void clear() {
    for (u64& word : m_words) word = 0;
  }

  // Calls `visit` with each entry, and leaves the set empty.
  template <class Visit>
  void take_all(Visit visit) {
    for (unsigned i = 0; i < kSize / 64; ++i) {
      for (; m_words[i]; m_words[i] &= m_words[i] - 1)
        visit(i * 64 + static_cast<unsigned>(std::countr_zero(m_words[i])));
    }
  }

 private:
  u64 m_words[kSize / 64] = {};
};

}  // namespace anykvm::x86
