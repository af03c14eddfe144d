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

// Where accesses and instructions need a look. Pages without a breakpoint run as ever.
class WatchedPages {
 public:
  WatchedPages() { m_code.fill(kNone), m_data.fill(kNone); }
  explicit WatchedPages(const Breakpoints& b);

  bool code(Gva address) const { return has(m_code, address); }
  bool data(Gva address) const { return has(m_data, address); }
  template <class Visit>
  void each(Visit visit) const {
    for (const auto* pages : {&m_code, &m_data}) {
      for (u64 page : *pages)
        if (page != kNone) visit(Gva(page));
    }
  }
  bool operator==(const WatchedPages&) const = default;

 private:
  static constexpr u64 kNone = 1;  // no page begins there
  using Pages = std::array<u64, 4>;
  static bool has(const Pages& pages, Gva address) {
    const u64 page = address.page().value;
    return pages[0] == page || pages[1] == page || pages[2] == page || pages[3] == page;
  }

  Pages m_code, m_data;
};

// Bits B0-B3 of DR6 for the breakpoints that match; whether they are enabled locally or globally makes no
// difference.
u64 matching_instruction(const Breakpoints& b, Gva rip);
u64 matching_data(const Breakpoints& b, Gva address, unsigned size, bool write);
u64 matching_port(const Breakpoints& b, u16 port, unsigned size);  // with CR4.DE

}  // namespace anykvm::x86
