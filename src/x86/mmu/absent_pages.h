#pragma once
// Which pages of guest memory the host would have to fetch before an access to them can go on: swapped out,
// part of a file that is not in memory, or to be filled by whoever handles a userfaultfd of the client's.
// Asked about only for guests that want to be told (asynchronous page faults); what was found out is kept in
// PageMeta::seen, so a TLB miss looks at one byte. Owner: Machine. Any thread; functions with slots only
// where guest memory may be used.

#include <atomic>
#include <mutex>
#include <vector>

#include "base/fd.h"
#include "x86/mmu/physical_memory.h"
#include "x86/translate/context.h"

namespace anykvm::x86 {

class ClientWrites;

class AbsentPages {
 public:
  explicit AbsentPages(ClientWrites& client_writes) : m_client_writes(client_writes) {}

  // The number for Context::absence_epoch. Cheap if called again soon: only then and when is looked at what
  // memory the client uses, and whether this process had to wait for pages since.
  u8 look(const PhysicalMemory& memory);

  // Has the host to fetch the page? If not, it is marked as seen in `epoch`, and so are those around it.
  bool is_absent(const MemorySlot& slot, Gpa address, u8 epoch);

  // Slots have changed.
  void memory_changed() { m_stale = true; }

 private:
  // Memory of the client that may be absent although nothing is swapped out.
  struct Range {
    u64 begin, end;
    bool file;  // or it is for somebody else's userfaultfd
  };

  bool is_time_to_look();
  void find_ranges(const PhysicalMemory& memory);
  bool has_foreign_userfaultfd(u64 page) const;
  const Range* range_of(u64 page) const;

  ClientWrites& m_client_writes;
  std::mutex m_mutex;
  std::vector<Range> m_ranges;  // m_mutex; by address
  bool m_swapping = false;      // m_mutex; something of the host's is swapped out
  Fd m_pagemap, m_probe;        // m_mutex
  u64 m_major_faults = 0;       // m_mutex; of this process when it was looked last
  std::atomic<u64> m_next_look{0};
  std::atomic<bool> m_stale{true};
  std::atomic<u8> m_epoch{0};
};

// Is the page to be asked about before the access goes on? (GuestStop::absent())
inline bool may_be_absent(const Context& context, const MemorySlot& slot, Gpa address) {
  if (!context.absence_epoch) return false;
  if (!(context.state.cpl || context.absence_at_cpl0) || !(context.state.rflags & kFlagIf)) return false;
  return slot.meta(address).seen.load(std::memory_order_relaxed) != context.absence_epoch;
}

}  // namespace anykvm::x86
