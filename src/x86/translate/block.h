#pragma once
// One translated block: a straight run of guest instructions and the host code made from it. There are as
// many as a guest has code, so what describes them is kept small: records in CodeCache's RecordMemory, behind
// each Block its links and its sites.
// Owner: CodeCache, until it is emptied with the world stopped. Guarded by CodeCache's mutex where written
// after creation; the code itself may run on any vCPU.

#include <span>
#include <vector>

#include "base/types.h"
#include "x86/ops/ops.h"
#include "x86/translate/decode.h"
#include "x86/translate/event_counts.h"
#include "x86/translate/mode.h"
#include "x86/translate/record_memory.h"

namespace anykvm::x86 {

// Where the guest's arithmetic flags are at a site.
enum class FlagsAt : u8 {
  kHost,
  kImage,      // Context::flags_image
  kRecovered,  // nowhere, but Site::recovery makes them from the registers
  kRound,      // the former in the first round of a loop, the latter afterwards (FlagPlan::round_recipe)
};

// A place in the host code from which control can leave in the middle of a guest instruction: behind a call
// to a thunk, or an instruction that can raise a host signal.
struct Site {
  u32 offset = 0;        // from Block::code
  u16 guest_offset = 0;  // of the guest instruction, from Block::rip
  bool fault = false;    // a signal at `offset`; otherwise a call that returns to `offset`
  FlagsAt flags = FlagsAt::kHost;
  u8 borrowed[2] = {kNoRegister, kNoRegister};  // host registers whose guest value is in Context::borrowed
  RecordRef recovery = kNoRecord;               // FlagRecovery

  bool operator==(const Site&) const = default;
};

// A direct jump to another block in the same guest page; patched once that block exists.
struct Link {
  RecordRef from = kNoRecord;           // Block
  RecordRef to = kNoRecord;             // Block; none while not linked
  RecordRef next_incoming = kNoRecord;  // Link; of the same `to`
  u32 displacement = 0;                 // of the jump's rel32, in the code memory
  u32 unlinked = 0;                     // where it points while not linked, in the code memory
  i16 target = 0;                       // its RIP, from the block's
  bool flags_in_host = true;            // at the jump
  bool loops = false;                   // to where `from` began: to its code_loop()
  bool narrow = false;                  // to a block of Mode::narrow
};

// A call of an instruction helper.
struct HelperSite {
  Insn insn;
  Op op = nullptr;
  u64 rip = 0;
  u64 next_rip = 0;
  bool ends_block = false;
  bool continues = false;  // with the block behind, if it is in the jump cache
  bool serializes = false;
  bool roams = false;  // its block does: both are within the page at Block::kNowhere
  u16 code_page = 0;   // the block's
  EventCounts counts;  // of memory accesses those of one iteration, if it is repeated
};

// A memory access by the slow path.
struct SlowSite {
  u64 rip = 0;  // of the instruction, without CS base
  SegmentIndex segment = kDs;
  bool segmented = false;  // the address is an offset within `segment`; otherwise linear
  bool read = false, write = false;
  bool locked = false;             // LOCK, or XCHG
  bool x87_store = false;          // may pop the register stack as well
  bool on_bus = false;             // slow for no other reason than SlotNumbers::goes_to_bus()
  bool first = true, last = true;  // of its instruction's accesses
  u16 size = 0;
  Gpa instruction{};               // if on_bus
  mutable u32 gone_elsewhere = 0;  // if on_bus: how often it was memory; any vCPU's thread counts, roughly
  // Masked vector accesses: only elements with their mask bit set are touched.
  u8 element = 0;       // bytes; 0: not masked
  u8 lanes = 0;         // mask bits; element i is active if bit i, i + elements, i + 2 elements ... is set
  bool packed = false;  // compress and expand: the active elements stand side by side
  bool vector_mask =
      false;  // the mask is the sign bits of vector register `mask`; otherwise opmask register `mask`
  u8 mask = 0;
};

// In a block that jumps back to its beginning: guest registers that live in the Context elsewhere have host
// registers from there to the ways out, those of guest registers that the block does not use. Context::lent
// keeps what these held.
struct LoopRegisters {
  static constexpr unsigned kMost = 3;  // R10, R11, R15

  u8 count = 0;
  u8 guest[kMost] = {};
  u8 lender[kMost] = {};  // the guest register whose host register it is
};

// Numbers of pages whose blocks roam: 1 to kCodePages - 1.
inline constexpr unsigned kCodePages = 65536;

struct Block {
  // What lookups compare and use stands first, so that it shares a cache line.
  Gpa gpa{};
  u64 rip = 0;
  Mode mode{};
  bool alive = true;                    // atomic
  i8 host_entry : 7 = 0;                // code_host() - code_image()
  u8 roams : 1 = 0;                     // see kNowhere
  u16 loop_entry = 0;                   // code_loop() - code
  RecordRef next_in_index = kNoRecord;  // Block; BlockIndex's
  // Executable address. Whoever enters at code_image() has the guest's flags in Context::flags_image, at
  // code_host() in the host's; one of them is here. A block that overwrites the flags before anybody can look
  // at them ignores both.
  u8* code = nullptr;
  Gpa gpa2{};  // if it straddles
  u32 host_bytes = 0;
  u16 guest_bytes = 0;
  LoopRegisters loop_registers;
  u8 round_register = kNoRegister;      // FlagPlan's
  bool ignores_flags : 1 = false;       // those that it begins with: nobody can look at them
  bool straddles : 1 = false;           // its only instruction continues on another page, at gpa2
  bool swallows_step_trap : 1 = false;  // its only instruction clears TF on its way (SDM 3B 18.3.1.4)
  bool into : 1 = false;                // that is INTO, which does so only if OF is set
  u16 code_page =
      0;  // if it roams: the number of its page, which hardly any other has (CodeCache::page_number)
  u16 site_words = 0;
  u16 link_count = 0;
  RecordRef incoming = kNoRecord;  // the first Link that leads here
  // Its last instruction, if that is an indirect jump, call or return: what to undo where the target cannot
  // be.
  u16 branch_offset = 0;  // from `rip`
  i32 branch_moved_stack = 0;
  // Of one that straddles: where links lead instead of to its code, with flags in the host's register and in
  // the image. That goes on through the jump cache, which knows whether both pages are still the same.
  u16 gate_host = 0, gate_image = 0;  // from `code`; 0: none

  // Blocks that roam serve their page at whatever linear address it runs: constants in them are distances
  // from there (Context::code_pages). They are made for an address that is nobody's, so that no other
  // constant works.
  static constexpr u64 kNowhere = u64{1} << 32;
  u8* code_image() const { return host_entry < 0 ? code - host_entry : code; }
  u8* code_host() const { return host_entry < 0 ? code : code + host_entry; }
  // Where its own jump back goes on: the same as code_host(), with LoopRegisters and vector state at their
  // places.
  u8* code_loop() const { return code + loop_entry; }
  bool is_alive() const { return __atomic_load_n(&alive, __ATOMIC_RELAXED); }
  // Is it the code for these?
  bool is(Gpa at, u64 at_rip, const Mode& wanted) const {
    return gpa == at && (roams || rip == at_rip) && mode == wanted;
  }
  std::span<Link> links() { return {reinterpret_cast<Link*>(this + 1), link_count}; }
  std::span<const u32> sites() const {
    return {reinterpret_cast<const u32*>(reinterpret_cast<const Link*>(this + 1) + link_count), site_words};
  }
};

// Sites as they are kept, one word for most:
//   bits 31:14 offset   bits 13:4 guest_offset   bit 3 fault   bits 2:1 flags
//   bit 0      the next word holds what is borrowed
// and behind that the recovery, if there is one.
namespace site_words {
std::vector<u32> pack(std::vector<Site> sites);
bool find(std::span<const u32> words, u32 offset, bool fault, Site* out);
}  // namespace site_words

}  // namespace anykvm::x86
