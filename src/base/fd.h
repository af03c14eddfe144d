#pragma once
// A file descriptor that is closed when its owner goes away. Numbers that the engine holds are its own
// business: a client that closes everything it does not know (the preload library asks) leaves them alone.
// Owner: whoever holds the Fd. Not synchronised; held_fds is for any thread.

#include <unistd.h>

#include <array>
#include <atomic>
#include <utility>

#include "base/types.h"

namespace anykvm {

// Which numbers some Fd of this process holds. Numbers beyond what programs use are not known here.
class HeldFds {
 public:
  static constexpr unsigned kLimit = 1 << 16;

  void note(int number, bool held) {
    if (number < 0 || static_cast<unsigned>(number) >= kLimit) return;
    const u64 bit = u64{1} << (number % 64);
    std::atomic<u64>& word = m_words[static_cast<unsigned>(number) / 64];
    held ? word.fetch_or(bit, std::memory_order_relaxed) : word.fetch_and(~bit, std::memory_order_relaxed);
  }
  bool has(unsigned number) const {
    return number < kLimit && (m_words[number / 64].load(std::memory_order_relaxed) >> number % 64 & 1);
  }
  void forget_all() {
    for (auto& word : m_words) word.store(0, std::memory_order_relaxed);
  }

 private:
  std::array<std::atomic<u64>, kLimit / 64> m_words{};
};
inline constinit HeldFds held_fds;

class Fd {
 public:
  Fd() = default;
  explicit Fd(int number) : m_number(number) { held_fds.note(m_number, true); }
  Fd(Fd&& other) noexcept : m_number(std::exchange(other.m_number, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    if (this != &other) {
      reset();
      m_number = std::exchange(other.m_number, -1);
    }
    return *this;
  }
  ~Fd() { reset(); }

  int get() const { return m_number; }
  bool valid() const { return m_number >= 0; }
  int release() {
    held_fds.note(m_number, false);
    return std::exchange(m_number, -1);
  }
  void reset() {
    if (const int number = release(); number >= 0) ::close(number);
  }

 private:
  int m_number = -1;
};

// Under a number beyond those that programs choose for descriptors of their own (dup2(2)), if there is one.
// For what is no client's business and stays open.
Fd out_of_the_way(Fd fd);
// The same of a file that stays open elsewhere too.
Fd duplicate_out_of_the_way(int number);

}  // namespace anykvm
