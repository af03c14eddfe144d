#pragma once
// Everything that translated code reaches through GS: the CPU state and what speeds it up.
// Owner: x86::Cpu. Only the vCPU's thread, but for `attention`, which any thread may set bits of.

#include <atomic>

#include "base/counters.h"
#include "base/zeroed_memory.h"
#include "x86/fault.h"
#include "x86/mmu/access_slots.h"
#include "x86/mmu/tlb.h"
#include "x86/state/cpu_state.h"
#include "x86/state/x87_state.h"
#include "x86/translate/access_groups.h"
#include "x86/translate/block.h"
#include "x86/translate/event_counts.h"
#include "x86/translate/far_links.h"
#include "x86/translate/flag_recovery.h"
#include "x86/translate/jump_entries.h"

namespace anykvm::x86 {

class Cpu;

// Why translated code went back to the dispatcher.
enum class Leave : u64 {
  kLookup = 0,      // find the block at state.rip
  kStop = 1,        // a helper filled Context::stop
  kSlow = 2,        // this instruction's memory access needs the slow form (page crossing, code page)
  kSignal = 3,      // a host signal in translated code; Context::signal_*
  kThrash = 4,      // the slot of this instruction's access misses all the time
  kNarrow = 5,      // the bytes of this instruction's group of accesses are not in one piece
  kCrosses = 7,     // this instruction writes across two pages, and can be made to do so on a copy
  kBus = 8,         // as kSlow: MMIO
  kHelperStop = 6,  // as kStop, and RIP and flags are those before the instruction already
};

// The mode and the attention bits in one word, so that one flag-free comparison covers both (translate/README
// in ARCHITECTURE.md): a jump-cache tag is -(rip + mode_id << 57), and rip + link_stamp + tag is 0 only for a
// hit without anything to attend to.
//   bits 63:57 mode id    bits 31:8 overflowed: 0 or FFH each    bits 7:0 attention
// With FFH added there an address has another index in the jump cache (JumpEntries' test).
union LinkStamp {
  u64 word = 0;
  struct {
    std::atomic<u8> attention;
    u8 overflowed[kLookedAt];  // written by translated code that counts: bits 63:56 of Context::events_left
    u8 unused[3];
    u8 mode_id_shifted;  // mode id << 1
  } part;
  LinkStamp() {}
};

// What waits for interrupts to be enabled; bits of Context::held_back.
enum HeldBack : u8 {
  kHeldEvent = 1,   // something is ready, but RFLAGS.IF holds it back
  kHeldClient = 2,  // the client wants to know (request_interrupt_window)
};

// SAFETY: only ever made by `new`, so what no initializer names is zero.
struct Context : InZeroedMemory {
  CpuState state;

  LinkStamp stamp;
  Context* self = nullptr;
  Cpu* cpu = nullptr;
  counters::CpuCounts* counts = nullptr;
  u64 host_rsp = 0;
  u64 borrowed[2] = {};  // host registers that a translated instruction borrowed
  u64 lent[LoopRegisters::kMost] = {};
  u64 spill = 0;  // flag saves
  u64 jump_spill = 0;
  u32 far_misses_left = kFarMissesAside;
  // By Counted: how many until a performance counter overflows, which it has if negative (sys/pmu.h).
  u64 events_left[kCountedByCode] = {};
  u64 value = 0;  // an operand that outlives a second memory access of its instruction
  u64 vector_spill[2] = {};
  u64 miss_spill[3] = {};
  u64 string_spill[8] = {};
  // Operands of a gather or scatter (Emitter::call_gather). `mask`: 64 bits, or the vector register.
  struct {
    alignas(64) u8 data[64], index[64], mask[64];
    u64 base;
    u64 done;  // it is: its helper has not been needed
  } gather = {};
  u8 splits = 0;  // groups without a slot that were not in one piece, modulo 256
  u64 group_delta[AccessGroups::kMostGroups] = {};  // of groups without a slot: host address - linear address
  // Guest arithmetic flags while they are not in the host's: AH as LAHF gives it in bits 15:8, OF in bit 0.
  u64 flags_image = 0x0200;
  u64 kept[FlagRecovery::kMostKept] = {};
  u64 first_round = 0;       // Block::round_register's value in the first round of a loop
  bool later_round = false;  // FlagsAt::kRound, where no register says so
  u64 vector_dead = 1;       // 0: the guest's vector state is in the host's registers, state.xsave is stale
  u64 xsave_mask = 0;        // components that are switched
  u8 held_back = 0;          // bits of HeldBack
  // Pages whose PageMeta::seen is another may be absent, which the guest wants to be told; 0: it does not, or
  // none is.
  u8 absence_epoch = 0;
  bool absence_at_cpl0 = false;  // it wants to be told in kernel code, too
  // Not just host TSC + offset: scaled, forbidden (CR4.TSD) or no such instruction.
  bool rdtsc_by_helper = false, rdtscp_by_helper = false;
  u32 host_mxcsr = 0x1f80;
  u32 host_fcw = 0x37f;
  u64 leave_pc = 0;  // host address behind the site that left (to find it in the block's site table)
  Leave leave = Leave::kLookup;
  GuestStop stop{};
  u8 signal_trap = 0;    // host trap number
  u64 signal_flags = 0;  // flags_image when the signal came

  // Slow accesses work on a copy; the low six address bits are kept, so that alignment checks stay true.
  alignas(64) u8 bounce[256 + 64] = {};
  u64 bounce_address = 0;  // linear
  // A write across two pages that is under way on a copy at bounce + crossing_at: where the bytes belong.
  u8 crossing = 0;  // there is one; or was, when the instruction raised an exception
  u8 crossing_at = 0, crossing_size = 0, crossing_in_first = 0;
  u8* crossing_to[2] = {};
  u64 bounce_before = 0;  // what a LOCKed instruction read across two pages
  std::array<u64, 16>
      slow_gpr{};  // registers and flags before the slow instruction, should its write have to wait
  u64 slow_flags = 0;
  X87State slow_x87;  // of a store by an x87 instruction

  // Of blocks that roam, by Block::code_page: the linear page at which they run, or ran last. Entries of the
  // jump cache lead to no others. 0: none, always 0.
  u64 code_pages[kCodePages];

  alignas(16) JumpEntry jumps[kJumpCacheEntries];
  JumpEntries jump_entries;
  FarLinks far_links;

  TlbTable tlb[kMmuIndexCount];
  AccessSlots access;

  Context() {
    for (bool user : {false, true}) forget_jump(first_jumps(user)), forget_jump(second_jumps(user));
  }

  // C++ is about to enter the block at `rip`.
  void run_at(const Block& block, u64 rip) {
    const u64 page = rip & ~(kPageSize - 1);
    if (!block.roams || code_pages[block.code_page] == page) return;
    flush_jumps_to_page(Gva(code_pages[block.code_page]));
    if (far_links.leads_from(block.code_page)) far_links.forget_local();
    code_pages[block.code_page] = page;
  }
  // The block runs, or has just left.
  u64 rip_of(const Block& block) const {
    return block.roams ? code_pages[block.code_page] + (block.rip - Block::kNowhere) : block.rip;
  }

  // The tag of an address of another index: of 2 or 0. So zeros are forgotten entries but for four.
  void forget_jump(unsigned index) {
    const bool of_zero = index < kFirstOfSeconds ? index % kFirstJumps == 0 : index % kSecondJumps == 0;
    jumps[index].tag = of_zero ? -2 : 0;
  }
  void forget_jump_to(u64 rip) {
    for (bool user : {false, true}) {
      forget_jump(jump_cache_index(rip, user));
      forget_jump(second_jump_index(rip, user));
    }
  }
  // It is dead, and led to from `rip`.
  void forget_jumps_to(const Block& block, u64 rip) {
    forget_jump_to(rip);
    far_links.forget_to(block);
  }
  static_assert(kFirstOfSeconds % kSecondJumps == 0);
  // Is the running code a user's?
  bool user() const { return state.cpl == 3; }
  // From `rip` in the mode of `stamp_word`, to the host code at `target`.
  void add_jump(u64 rip, bool user, u64 stamp_word, u64 target, const JumpedTo& to) {
    const unsigned index = jump_cache_index(rip, user);
    const i64 tag = static_cast<i64>(-(rip + stamp_word));
    const JumpEntry before = jumps[index];
    const u64 before_rip = static_cast<u64>(-before.tag);  // but for the mode, which no index depends on
    if (before.tag != tag && jump_cache_index(before_rip, user) == index) {
      const unsigned second = second_jump_index(before_rip, user);
      jumps[second] = before;
      jump_entries.copy(index, second);
    }
    jumps[index] = {tag, target};
    jump_entries.add(index, to);
  }
  void flush_jump_cache() {
    jump_entries.take_all([this](unsigned i) { forget_jump(i); });
    far_links.forget_all();
  }
  void flush_jumps_to_compared_pages() {
    jump_entries.take_compared([this](unsigned i) { forget_jump(i); });
  }
  // INVLPG
  void flush_jumps_to_page(Gva page) {
    if (jump_entries.may_lead_to(page)) far_links.forget_all();
    jump_entries.take_page(page, [this](unsigned i) { forget_jump(i); });
  }
  // MOV to CR3: what global pages gave stays.
  void flush_non_global() {
    for (auto& table : tlb) table.flush_non_global();
    access.flush();
    jump_entries.take_local([this](unsigned i) { forget_jump(i); });
    far_links.forget_local();
  }
  void flush_tlb() {
    for (auto& table : tlb) table.flush();
    access.flush();
    flush_jump_cache();
  }

  void image_from_rflags() { flags_image = ((state.rflags & 0xd5) | 2) << 8 | ((state.rflags >> 11) & 1); }
  void rflags_from_image() {
    state.rflags =
        (state.rflags & ~u64{kFlagsArithmetic}) | ((flags_image >> 8) & 0xd5) | ((flags_image & 1) << 11);
  }
};

}  // namespace anykvm::x86
