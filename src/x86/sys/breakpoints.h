#pragma once
// Hardware breakpoints: which of DR0-DR3 an access or an instruction matches (SDM 3B 18.2).
// Owner: nobody; pure functions. Any thread.

#include <array>

#include "base/types.h"

namespace anykvm::x86 {

// The breakpoint registers in force: the guest's own, or the client's (KVM_GUESTDBG_USE_HW_BP).
struct Breakpoints {
  std::array<u64, 4> address{};
  u64 control = 0;  // DR7

  bool any_enabled() const { return control & 0xff; }
};

// Bits B0-B3 of DR6 for the breakpoints that match; whether they are enabled locally or globally makes no
// difference.
u64 matching_instruction(const Breakpoints& b, Gva rip);
u64 matching_data(const Breakpoints& b, Gva address, unsigned size, bool write);
u64 matching_port(const Breakpoints& b, u16 port, unsigned size);  // with CR4.DE

}  // namespace anykvm::x86
