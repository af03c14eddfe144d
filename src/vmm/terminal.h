#pragma once
// Raw mode for the user's terminal, given back on every way out: normal return, exit(), abort() and crashes.
// Owner: one RawTerminal at a time. Only from the main thread; the signal handlers are async-signal-safe.

#include "vmm/failure.h"

namespace anykvm::vmm {

class RawTerminal {
 public:
  // Does nothing, and active() is false, if `fd` is no terminal.
  static Outcome<RawTerminal> enter(int fd);
  RawTerminal(RawTerminal&& other) noexcept;
  RawTerminal& operator=(RawTerminal&&) = delete;
  ~RawTerminal() { restore(); }

  bool active() const { return m_active; }
  // Again raw, after the shell had the terminal (SIGCONT).
  void reenter() const;
  void restore();

 private:
  RawTerminal() = default;
  bool m_active = false;
};

}  // namespace anykvm::vmm
