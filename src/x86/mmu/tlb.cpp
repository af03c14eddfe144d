#include "x86/mmu/tlb.h"

namespace anykvm::x86 {

void TlbTable::flush() {
  for (unsigned i = 0; i < kTlbEntries; ++i) read_tag[i] = write_tag[i] = never(i);
}

void TlbTable::flush_non_global() {
  for (unsigned i = 0; i < kTlbEntries; ++i) {
    if (!global[i]) read_tag[i] = write_tag[i] = never(i);
  }
}

void TlbTable::flush_page(Gva address) {
  unsigned i = index_of(address);
  read_tag[i] = write_tag[i] = never(i);
}

void TlbTable::forbid_writes(const u8* host_page) {
  u64 wanted = reinterpret_cast<u64>(host_page);
  for (unsigned i = 0; i < kTlbEntries; ++i) {
    if (host[i] == wanted) write_tag[i] = never(i);
  }
}

}  // namespace anykvm::x86
