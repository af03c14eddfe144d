#pragma once
// The parts of a Cpu that only its own implementation files see.
// Owner: x86::Cpu. Only the vCPU's thread, but for what is queued.

#include <array>
#include <atomic>

#include "x86/cpu.h"
#include "x86/machine.h"
#include "x86/mmu/entry_set.h"
#include "x86/mmu/io_replay.h"
#include "x86/mmu/nested_paging.h"
#include "x86/nested/svm/exits.h"
#include "x86/nested/svm/msr_map.h"
#include "x86/sys/pmu.h"
#include "x86/translate/code_cache.h"
#include "x86/translate/context.h"
#include "x86/translate/mode.h"

namespace anykvm::x86 {

// Linear pages that instructions were fetched from, flushed with the TLB.
struct FetchCache {
  static constexpr unsigned kEntries = 1024;
  struct Entry {
    u64 tag = ~u64{0};  // linear page | MmuIndex
    Gpa page{};
    u8* host = nullptr;
    PageMeta* meta = nullptr;
    bool global = false;
    u64 moment = 0;  // when it was looked at last (ClientWrites)
  };
  Entry entries[kEntries];
  EntrySet<kEntries> global{}, local{};  // those that are filled

  static unsigned index_of(Gva address) { return (address.value >> 12) % kEntries; }
  Entry& at(Gva address) { return entries[index_of(address)]; }
  void put(Gva address, const Entry& entry) {
    at(address) = entry;
    const unsigned index = index_of(address);
    (entry.global ? global : local).add(index);
    (entry.global ? local : global).remove(index);
  }
  static u64 tag_of(Gva address, MmuIndex mmu) { return address.page().value | mmu; }
  void flush_page(Gva address) {
    Entry& entry = at(address);
    if ((entry.tag & ~(kPageSize - 1)) == address.page().value) entry.tag = ~u64{0};
  }
  void flush_non_global() {
    local.take_all([this](unsigned i) { entries[i].tag = ~u64{0}; });
  }
  void flush() {
    flush_non_global();
    global.take_all([this](unsigned i) { entries[i].tag = ~u64{0}; });
  }
};

// The modes that this CPU has been in, and their numbers in LinkStamp (1 to kMax).
class ModeIds {
 public:
  static constexpr unsigned kMax = 127;
  // 0: not known.
  u8 find(const Mode& mode) const {
    for (unsigned i = 0; i < m_count; ++i)
      if (m_modes[i] == mode) return static_cast<u8>(i + 1);
    return 0;
  }
  bool full() const { return m_count == kMax; }
  u8 add(const Mode& mode) {
    m_modes[m_count++] = mode;
    return static_cast<u8>(m_count);
  }
  void clear() { m_count = 0; }
  bool empty() const { return m_count == 0; }

 private:
  unsigned m_count = 0;
  std::array<Mode, kMax> m_modes;
};

// Blocks that were looked up lately. Those of discarded code are forgotten with the world stopped
// (kAttentionWorld); those that died alone say so themselves.
struct FoundBlocks {
  static constexpr unsigned kEntries = 16384;
  std::array<Block*, kEntries> blocks{};

  Block*& at(const CodeSource& source) {
    const u64 place = source.mode.may_roam() ? 0 : (source.rip >> 12) * 0x9e37;
    return blocks[(source.gpa.value ^ source.gpa.value >> 12 ^ place) % kEntries];
  }
  void forget() { blocks.fill(nullptr); }
};

// How often translated code has left for the same reason lately, by the place.
class LeavesLately {
 public:
  // So many within so much time (host TSC) are too many.
  bool too_many(u64 place, u64 now) {
    constexpr u64 kTime = u64{1} << 26;
    constexpr u32 kMost = 64;
    Entry& entry = m_entries[(place ^ place >> 8) % m_entries.size()];
    if (entry.place != place || now - entry.since > kTime) entry = {place, now, 0};
    return ++entry.count % kMost == 0;
  }

 private:
  struct Entry {
    u64 place = 0, since = 0;
    u32 count = 0;
  };
  std::array<Entry, 256> m_entries{};
};

struct Cpu::Private {
  explicit Private(Cpu& cpu) : pmu(cpu) {}

  Breakpoints breakpoints(const CpuState& state) const {
    if (guest_debug.hardware_breakpoints) return guest_debug.breakpoints;
    return {state.dr, state.dr7};
  }

  IoReplay replay;
  Exit exit;                    // for the client
  bool exit_after = false;      // `exit` is due once the current instruction is complete
  bool recheck_events = false;  // after the block that runs in an interrupt shadow
  std::atomic<u8> queued_nmis{0};
  std::atomic<bool> queued_smi{false};

  svm::PendingExit vmexit;  // of GuestStop::vmexit()
  u64 delivering = 0;       // the event on its way into the nested guest (EXITINTINFO)
  NestedTlb nested_tlb;
  svm::TlbTags nested_tags;  // what the entries of nested guests are of
  svm::MsrMapCopy msr_map;

  Pmu pmu;
  GuestDebug guest_debug;
  u64 debug_hits = 0;  // bits of DR6 that the current instruction has earned
  WatchedPages watched;

  Mode mode{};
  TranslationLimits limits{};
  ModeIds mode_ids;
  FetchCache fetch;
  FoundBlocks found;
  // What was written to code before is seen, and which pages are compared is known (ClientWrites).
  u64 moment = 0, compared_changes = 0;
  LeavesLately narrowings;  // groups of accesses that turned out not to be in one piece
  LeavesLately bus_accesses;
  // Linear ranges, one in each half of the address space, that hold every large page in the TLB.
  struct Range {
    u64 first = ~u64{0}, last = 0;
    void add(u64 from, u64 to) { first = from < first ? from : first, last = to > last ? to : last; }
    bool contains(u64 a) const { return a >= first && a <= last; }
  } large_pages[2];
};

}  // namespace anykvm::x86
