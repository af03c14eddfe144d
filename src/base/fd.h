#pragma once
// A file descriptor that is closed when its owner goes away.
// Owner: whoever holds the Fd. Not synchronised.

#include <unistd.h>

#include <utility>

namespace anykvm {

class Fd {
 public:
  Fd() = default;
  explicit Fd(int number) : m_number(number) {}
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
  int release() { return std::exchange(m_number, -1); }
  void reset() {
    if (m_number >= 0) ::close(m_number);
    m_number = -1;
  }

 private:
  int m_number = -1;
};

}  // namespace anykvm
