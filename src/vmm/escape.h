#pragma once
// The console's escape key: Ctrl-A X leaves, Ctrl-A H or ? shows help, Ctrl-A A sends a Ctrl-A to the guest.
// Owner: the console loop. One thread.

#include <span>
#include <vector>

#include "base/types.h"

namespace anykvm::vmm {

class EscapeFilter {
 public:
  struct Result {
    std::vector<u8> bytes;  // for the guest
    bool quit = false;
    bool help = false;
  };
  // Remembers a Ctrl-A at the end of `typed` for the next call.
  Result feed(std::span<const u8> typed);

 private:
  void after_escape(u8 key, Result& result);
  bool m_escaped = false;
};

}  // namespace anykvm::vmm
