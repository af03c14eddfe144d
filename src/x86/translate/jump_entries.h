#pragma once
// The jump cache's entries, and which of them are filled and in which linear page their blocks lie: what
// flushes need to know. Owner: Context. Only the vCPU's thread.

#include "x86/mmu/entry_set.h"

namespace anykvm::x86 {

// A kernel's ways through itself have hundreds of targets, so there are many more entries. What another
// target of the same index drives out goes to one of the second kind, which a thunk looks at
// (make_jump_miss).
inline constexpr unsigned kFirstJumps = 16384, kSecondJumps = 4096;
inline constexpr unsigned kJumpCacheEntries = kFirstJumps + kSecondJumps;

// Functions tend to begin at the same offsets of their pages, so the page number takes part. Bit 0 does not:
// thus translated code gets the entry's place by scaling with 8 what it masks (Emitter::jump_to_address).
constexpr u32 kJumpIndexMask = (kFirstJumps - 1) << 1;
constexpr unsigned jump_cache_index(u64 rip) {
  return (static_cast<u32>(rip ^ rip >> 12) & kJumpIndexMask) >> 1;
}
// Other bits meet here.
inline constexpr unsigned kSecondJumpShift = 19;
constexpr u32 kSecondJumpMask = (kSecondJumps - 1) << 1;
constexpr unsigned second_jump_index(u64 rip) {
  return kFirstJumps + ((static_cast<u32>(rip ^ rip >> kSecondJumpShift) & kSecondJumpMask) >> 1);
}

struct JumpEntry {
  i64 tag;     // LinkStamp
  u64 target;  // host code
};

class JumpEntries {
 public:
  // Entry `index` leads to a block that begins at linear address `start`; `straddles`: it continues on the
  // next page.
  void add(unsigned index, u64 start, bool global, bool straddles) {
    const bool kept = global && !straddles;
    m_page[index] = page_number(start);
    m_straddles[index] = straddles;
    (kept ? m_global : m_local).add(index);
    (kept ? m_local : m_global).remove(index);
    (kept ? m_global_pages : m_local_pages).add(m_page[index]);
    if (straddles) m_local_pages.add(page_number(start + kPageSize));
  }

  // Entry `to` becomes what `from` is.
  void copy(unsigned from, unsigned to) {
    const bool kept = m_global.has(from);
    m_page[to] = m_page[from];
    m_straddles[to] = m_straddles[from];
    (kept ? m_global : m_local).add(to);
    (kept ? m_local : m_global).remove(to);
  }

  // Each calls `forget` with the entries that must go.
  template <class Forget>
  void take_all(Forget forget) {
    take_local(forget);
    m_global.take_all(forget);
    m_global_pages.clear();
  }
  template <class Forget>
  void take_local(Forget forget) {
    m_local.take_all(forget);
    m_local_pages.clear();
  }
  template <class Forget>
  void take_page(Gva page, Forget forget) {
    const u16 number = page_number(page.value);
    if (!m_local_pages.has(number) && !m_global_pages.has(number)) return;
    auto forget_there = [&](unsigned i) {
      const bool before = m_straddles[i] && (m_page[i] + 1) % kPageNumbers == number;
      if (m_page[i] == number || before) forget(i);
    };
    m_local.for_each(forget_there);
    m_global.for_each(forget_there);
    m_local_pages.remove(number);
    m_global_pages.remove(number);
  }

 private:
  static constexpr unsigned kPageNumbers = 65536;
  static constexpr u16 page_number(u64 address) { return static_cast<u16>((address >> 12) % kPageNumbers); }

  u16 m_page[kJumpCacheEntries] = {};
  bool m_straddles[kJumpCacheEntries] = {};
  EntrySet<kJumpCacheEntries> m_global, m_local;
  // Pages that entries may lie in, by number.
  EntrySet<kPageNumbers> m_global_pages, m_local_pages;
};

}  // namespace anykvm::x86
