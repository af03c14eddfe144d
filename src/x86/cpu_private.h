#pragma once
// The parts of a Cpu that only its own implementation files see.
// Owner: x86::Cpu. Only the vCPU's thread, but for `queued_nmis`.

#include <atomic>
#include <unordered_map>

#include "x86/cpu.h"
#include "x86/machine.h"
#include "x86/mmu/io_replay.h"
#include "x86/translate/code_cache.h"
#include "x86/translate/context.h"
#include "x86/translate/mode.h"

namespace anykvm::x86 {

// Linear pages that instructions were fetched from, flushed with the TLB.
struct FetchCache {
  static constexpr unsigned kEntries = 256;
  struct Entry {
    u64 tag = ~u64{0};  // linear page | MmuIndex
    Gpa page{};
    const u8* host = nullptr;
    bool global = false;
  };
  Entry entries[kEntries];

  Entry& at(Gva address) { return entries[(address.value >> 12) % kEntries]; }
  static u64 tag_of(Gva address, MmuIndex mmu) { return address.page().value | mmu; }
  void flush_non_global() {
    for (Entry& e : entries) {
      if (!e.global) e.tag = ~u64{0};
    }
  }
  void flush() {
    for (Entry& e : entries) e.tag = ~u64{0};
  }
};

struct Cpu::Private {
  Breakpoints breakpoints(const CpuState& state) const {
    if (guest_debug.hardware_breakpoints) return guest_debug.breakpoints;
    return {state.dr, state.dr7};
  }

  IoReplay replay;
  Exit exit;                   // for the client
  bool exit_after = false;     // `exit` is due once the current instruction is complete
  bool event_waiting = false;  // something is ready, but RFLAGS.IF or a shadow holds it back
  bool window_requested = false;
  bool recheck_events = false;  // after the block that runs in an interrupt shadow
  std::atomic<u8> queued_nmis{0};

  GuestDebug guest_debug;
  u64 debug_hits = 0;  // bits of DR6 that the current instruction has earned

  Mode mode{};
  TranslationLimits limits{};
  std::unordered_map<Mode, u8, ModeHash> mode_ids;
  FetchCache fetch;
  // Linear ranges, one in each half of the address space, that hold every large page in the TLB.
  struct Range {
    u64 first = ~u64{0}, last = 0;
    void add(u64 from, u64 to) { first = from < first ? from : first, last = to > last ? to : last; }
    bool contains(u64 a) const { return a >= first && a <= last; }
  } large_pages[2];
};

}  // namespace anykvm::x86
