#include "x86/sys/breakpoints.h"

#include "base/bits.h"

namespace anykvm::x86 {
namespace {

enum Kind : unsigned { kExecute = 0, kWrite = 1, kPort = 2, kReadWrite = 3 };

bool enabled(const Breakpoints& b, unsigned i) { return (b.control >> (2 * i)) & 3; }
Kind kind(const Breakpoints& b, unsigned i) { return static_cast<Kind>((b.control >> (16 + 4 * i)) & 3); }

// LEN: 00 one byte, 01 two, 10 eight, 11 four.
unsigned length(const Breakpoints& b, unsigned i) {
  static constexpr unsigned kLengths[] = {1, 2, 8, 4};
  return kLengths[(b.control >> (18 + 4 * i)) & 3];
}

bool overlaps(const Breakpoints& b, unsigned i, u64 address, unsigned size) {
  u64 first = align_down(b.address[i], length(b, i));
  return address < first + length(b, i) && first < address + size;
}

template <class Wanted>
u64 matching(const Breakpoints& b, u64 address, unsigned size, Wanted wanted) {
  u64 found = 0;
  for (unsigned i = 0; i < 4; ++i) {
    if (enabled(b, i) && wanted(kind(b, i)) && overlaps(b, i, address, size)) found |= bit(i);
  }
  return found;
}

}  // namespace

WatchedPages::WatchedPages(const Breakpoints& b) : WatchedPages() {
  for (unsigned i = 0; i < 4; ++i) {
    if (!enabled(b, i) || kind(b, i) == kPort) continue;
    // None crosses a page: its address is aligned to its length.
    (kind(b, i) == kExecute ? m_code : m_data)[i] = Gva(b.address[i]).page().value;
  }
}

u64 matching_instruction(const Breakpoints& b, Gva rip) {
  u64 found = 0;
  for (unsigned i = 0; i < 4; ++i) {
    if (enabled(b, i) && kind(b, i) == kExecute && b.address[i] == rip.value) found |= bit(i);
  }
  return found;
}

u64 matching_data(const Breakpoints& b, Gva address, unsigned size, bool write) {
  return matching(b, address.value, size, [&](Kind k) { return k == kReadWrite || (k == kWrite && write); });
}

u64 matching_port(const Breakpoints& b, u16 port, unsigned size) {
  return matching(b, port, size, [](Kind k) { return k == kPort; });
}

}  // namespace anykvm::x86
