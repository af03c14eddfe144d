#pragma once
// A seeded source of random numbers. Owner: one test. One thread.

#include <random>

#include "base/types.h"

namespace anykvm::isa {

class Random {
 public:
  explicit Random(u64 seed) : m_engine(seed) {}

  u64 next() { return m_engine(); }
  u64 below(u64 limit) { return m_engine() % limit; }
  u64 between(u64 first, u64 last) { return first + below(last - first + 1); }
  bool one_in(u64 n) { return below(n) == 0; }
  template <class T, std::size_t n>
  T pick(const T (&values)[n]) {
    return values[below(n)];
  }

 private:
  std::mt19937_64 m_engine;
};

}  // namespace anykvm::isa
