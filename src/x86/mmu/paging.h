#pragma once
// The page walk: linear to guest physical address, in every paging mode (SDM 3A chapter 4).
// Owner: nobody; a function over CPU state and guest memory. Only the vCPU's thread.

#include "x86/fault.h"
#include "x86/state/cpu_state.h"

namespace anykvm::x86 {

class PhysicalMemory;

enum class Access : u8 { kRead, kWrite, kFetch };

// On whose authority an access is made (SDM 3A 4.6): the running code's CPL, or implicitly the supervisor's
// (descriptor tables, TSS), whatever the CPL is.
enum class Privilege : u8 { kCurrent, kSystem };

// Where the CPU finds what is at the physical address: system-management mode has an address space of its
// own.
Gpa as_seen(const CpuState& state, const PhysicalMemory& memory, Gpa address);

// Which tables the walk goes through (SDM 3A 4.1.1).
enum class PagingMode : u8 { kNone, k32Bit, kPae, k4Level, k5Level };

inline PagingMode paging_mode(const CpuState& state) {
  if (!(state.cr0 & kCr0Pg)) return PagingMode::kNone;
  if (!(state.cr4 & kCr4Pae)) return PagingMode::k32Bit;
  if (!state.long_mode()) return PagingMode::kPae;
  return state.cr4 & kCr4La57 ? PagingMode::k5Level : PagingMode::k4Level;
}

struct Translation {
  Gpa gpa{};              // of the byte asked for
  u64 page_size = 0;      // 4 KiB, 2 MiB, 4 MiB or 1 GiB; with paging off 4 KiB
  bool writable = false;  // a write by the same privilege would be permitted AND the D flag is already set
  bool user = false;      // U/S is set at every level
  bool global = false;
  bool executable = false;  // a fetch by the same privilege would be permitted
};

// Walks the guest's tables for one access, sets A and D flags as the CPU would (atomically), and checks
// permissions: P, R/W with CR0.WP, U/S, NX, SMEP, SMAP with EFLAGS.AC, protection keys, reserved bits (SEEDS
// X5), canonical form is the caller's business. Returns #PF with the exact error code. A nested guest's
// physical addresses go through its hypervisor's tables in turn, whose refusal is
// GuestStop::Kind::kNestedPageFault. Compiled without vector instructions (DESIGN D6).
Guest<Translation> translate(const CpuState& state, const PhysicalMemory& memory, Gva address, Access access,
                             Privilege privilege, unsigned physical_address_bits);

// Loads the PDPTE registers from the table at `cr3` (SDM 3A 4.4.1): on MOV to CR3 with PAE paging, and when
// MOV to CR0 or CR4 changes CD, NW, PG, PAE, PGE, PSE or SMEP and PAE paging is on afterwards. #GP(0), and
// nothing loaded, where a present one has a reserved bit set. Whoever sets CR3 without knowing the PDPTEs
// clears `state.pdptes_valid` instead.
Guest<void> load_pdptes(CpuState& state, const PhysicalMemory& memory, u64 cr3,
                        unsigned physical_address_bits);

// The PDPTEs that PAE paging uses now: the registers, or where they are not valid what the table in memory
// has (0 where it cannot be read).
std::array<u64, 4> pdptes_in_use(const CpuState& state, const PhysicalMemory& memory);

// As KVM_TRANSLATE and debuggers need it: no permission checks, no A/D updates.
struct DebugTranslation {
  bool valid = false, writable = false, user = false;
  Gpa gpa{};
};
DebugTranslation translate_for_debug(const CpuState& state, const PhysicalMemory& memory, Gva address);

}  // namespace anykvm::x86
