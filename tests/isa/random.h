#pragma once
// A seeded source of random numbers (xoshiro256**): fast, since whole memories are filled from it.
// Owner: one test. One thread.

#include <array>

#include "base/types.h"

namespace anykvm::isa {

class Random {
 public:
  explicit Random(u64 seed) {
    for (u64& word : m_state) word = scramble(seed += 0x9e3779b97f4a7c15);
  }

  u64 next() {
    u64 result = rotate(m_state[1] * 5, 7) * 9;
    u64 shifted = m_state[1] << 17;
    m_state[2] ^= m_state[0];
    m_state[3] ^= m_state[1];
    m_state[1] ^= m_state[2];
    m_state[0] ^= m_state[3];
    m_state[2] ^= shifted;
    m_state[3] = rotate(m_state[3], 45);
    return result;
  }
  u64 below(u64 limit) {
    __extension__ using Wide = unsigned __int128;
    return static_cast<u64>((static_cast<Wide>(next()) * limit) >> 64);
  }
  u64 between(u64 first, u64 last) { return first + below(last - first + 1); }
  bool one_in(u64 n) { return below(n) == 0; }
  template <class T, std::size_t n>
  T pick(const T (&values)[n]) {
    return values[below(n)];
  }

 private:
  static u64 rotate(u64 value, unsigned by) { return value << by | value >> (64 - by); }
  static u64 scramble(u64 z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }

  std::array<u64, 4> m_state;
};

}  // namespace anykvm::isa
