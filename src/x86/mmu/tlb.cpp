#include "x86/mmu/tlb.h"

namespace anykvm::x86 {

void TlbTable::flush() {
  flush_non_global();
  global.take_all([this](unsigned i) { forget(i); });
}

void TlbTable::flush_non_global() {
  local.take_all([this](unsigned i) { forget(i); });
}

void TlbTable::flush_page(Gva address) { forget(index_of(address)); }

void TlbTable::forbid_writes(const u8* host_page) {
  u64 wanted = reinterpret_cast<u64>(host_page);
  for (unsigned i = 0; i < kTlbEntries; ++i) {
    if (host[i] == wanted) write_tag[i] = never(i);
  }
}

}  // namespace anykvm::x86
