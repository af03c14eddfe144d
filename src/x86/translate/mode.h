#pragma once
// What translated code is specialised for: the parts of the CPU state that change how instructions are
// translated. Owner: nobody; plain values. Any thread.

#include <array>
#include <bit>
#include <functional>

#include "base/types.h"
#include "x86/mmu/tlb.h"
#include "x86/state/cpu_state.h"

namespace anykvm::x86 {

struct Mode {
  u8 code_bits = 16;   // 16, 32 or 64
  u8 stack_bytes = 2;  // 2, 4 or 8
  MmuIndex mmu = kMmuSupervisor;
  u8 cpl = 0;
  bool flat : 1 = false;        // all of ES, CS, SS, DS: base 0, limit 4 GiB, readable and (data) writable
  bool protected_ : 1 = false;  // neither real-address nor virtual-8086 mode
  bool long_mode : 1 = false;
  bool x87 : 1 = false;   // x87 and MMX instructions may run: CR0.EM and TS are clear
  bool wait : 1 = false;  // WAIT may run: not (CR0.MP and TS)
  bool sse : 1 = false;
  bool avx : 1 = false;
  bool avx512 : 1 = false;
  bool step : 1 = false;          // one instruction a block, no links (TF, guest debug)
  bool slow : 1 = false;          // memory accesses by the C++ path: MMIO, page crossing, code pages
  bool traps_inline : 1 = false;  // nested, and the hypervisor wants to see PUSHF or PAUSE
  bool narrow : 1 = false;        // every access checks for itself (translate/access_groups.h)
  // For performance counters (sys/pmu.h): what the code counts, and whether it looks for overflows.
  bool counts_instructions : 1 = false;
  bool counts_branches : 1 = false;
  bool counts_accesses : 1 = false;
  bool counters_overflow : 1 = false;
  u16 unused = 0;
  u64 cs_base = 0;  // outside 64-bit mode

  // All of it, for hashes. Comparisons go by the members: what was just written bit by bit is slow to read as
  // a word.
  using Words = std::array<u64, 2>;
  Words words() const { return std::bit_cast<Words>(*this); }
  bool operator==(const Mode&) const = default;
  // The code is that of a hypervisor's guest (state/vmcb.h).
  bool nested() const { return mmu >= kMmuNested; }
  bool counts() const { return counts_instructions || counts_branches || counts_accesses; }
  bool code64() const { return code_bits == 64; }
  // Addresses that translated code may look up in the TLB directly.
  bool direct_memory() const { return !slow && (code64() || flat); }
  // Processes have the same code of a library at addresses of their own, so a block serves them all
  // (Block::roams).
  bool may_roam() const;
};

static_assert(sizeof(Mode) == sizeof(Mode::Words));

Mode compute_mode(const CpuState& state);
// The TLB that accesses of the running code go by.
MmuIndex mmu_index(const CpuState& state);

struct ModeHash {
  std::size_t operator()(const Mode& m) const;
};

}  // namespace anykvm::x86
