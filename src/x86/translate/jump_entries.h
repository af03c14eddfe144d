#pragma once
// The jump cache's entries, and which of them are filled and in which linear page their blocks lie: what
// flushes need to know. Owner: Context. Only the vCPU's thread.

#include "x86/mmu/entry_set.h"

namespace anykvm::x86 {

// A kernel's ways through itself have hundreds of targets, so there are many more entries. What another
// target of the same index drives out goes to one of the second kind, which a thunk looks at
// (make_jump_miss).
inline constexpr unsigned kFirstJumps = 131072, kSecondJumps = 16384;
// User code (CPL 3) has places apart from all other: the sum of an address and a mode can be that of another
// address, not canonical, and another mode, and a user's jump must never find the kernel's code.
inline constexpr unsigned kFirstOfSeconds = 2 * kFirstJumps;
inline constexpr unsigned kJumpCacheEntries = 2 * (kFirstJumps + kSecondJumps);
constexpr unsigned first_jumps(bool user) { return user ? kFirstJumps : 0; }
constexpr unsigned second_jumps(bool user) { return kFirstOfSeconds + (user ? kSecondJumps : 0); }

// Functions tend to begin at the same offsets of their pages, so the page number takes part. Bit 0 does not:
// thus translated code gets the entry's place by scaling with 8 what it masks (Emitter::jump_to_address).
constexpr u32 kJumpIndexMask = (kFirstJumps - 1) << 1;
constexpr unsigned jump_cache_index(u64 rip, bool user) {
  return first_jumps(user) + ((static_cast<u32>(rip ^ rip >> 12) & kJumpIndexMask) >> 1);
}
// Other bits meet here.
inline constexpr unsigned kSecondJumpShift = 19;
constexpr u32 kSecondJumpMask = (kSecondJumps - 1) << 1;
constexpr unsigned second_jump_index(u64 rip, bool user) {
  return second_jumps(user) + ((static_cast<u32>(rip ^ rip >> kSecondJumpShift) & kSecondJumpMask) >> 1);
}

struct JumpEntry {
  i64 tag;     // LinkStamp
  u64 target;  // host code
};

// Where a jump leads.
struct JumpedTo {
  u64 start;               // linear address of the block
  bool global;             // its page is
  bool straddles = false;  // it continues on the next page
  bool compared = false;   // its bytes are to be compared after each moment (ClientWrites)
  i8 host_entry = 0;       // Block::host_entry
};

// SAFETY: only ever made in a Context, so what no initializer names is zero.
class JumpEntries {
 public:
  void add(unsigned index, const JumpedTo& to) {
    const bool kept = to.global && !to.straddles;
    m_page[index] = page_number(to.start);
    m_straddles[index] = to.straddles;
    m_host_entry[index] = to.host_entry;
    (kept ? m_global : m_local).add(index);
    (kept ? m_local : m_global).remove(index);
    set_compared(index, to.compared);
    (kept ? m_global_pages : m_local_pages).add(m_page[index]);
    if (to.straddles) m_local_pages.add(page_number(to.start + kPageSize));
  }

  // Entry `to` becomes what `from` is.
  void copy(unsigned from, unsigned to) {
    const bool kept = m_global.has(from);
    m_page[to] = m_page[from];
    m_straddles[to] = m_straddles[from];
    m_host_entry[to] = m_host_entry[from];
    (kept ? m_global : m_local).add(to);
    (kept ? m_local : m_global).remove(to);
    set_compared(to, m_compared.has(from));
  }

  // Of a filled entry: is it right until its page is flushed?
  bool lasts(unsigned index) const { return !m_straddles[index] && !m_compared.has(index); }
  bool global(unsigned index) const { return m_global.has(index); }
  i64 host_entry(unsigned index) const { return m_host_entry[index]; }
  // Has a jump led to this page since what leads there was taken? May be true of others, too.
  bool may_lead_to(Gva page) const {
    const u16 number = page_number(page.value);
    return m_local_pages.has(number) || m_global_pages.has(number);
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
  void take_compared(Forget forget) {
    m_compared.take_all(forget);
  }
  template <class Forget>
  void take_page(Gva page, Forget forget) {
    const u16 number = page_number(page.value);
    if (!may_lead_to(page)) return;
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

  void set_compared(unsigned index, bool compared) {
    if (compared) {
      m_compared.add(index);
    } else {
      m_compared.remove(index);
    }
  }

  u16 m_page[kJumpCacheEntries];
  bool m_straddles[kJumpCacheEntries];
  i8 m_host_entry[kJumpCacheEntries];
  EntrySet<kJumpCacheEntries> m_global, m_local;
  EntrySet<kJumpCacheEntries> m_compared;  // some of either
  // Pages that entries may lie in, by number.
  EntrySet<kPageNumbers> m_global_pages, m_local_pages;
};

}  // namespace anykvm::x86
