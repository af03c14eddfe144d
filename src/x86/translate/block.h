#pragma once
// One translated block: a straight run of guest instructions and the host code made from it.
// Owner: CodeCache, until it is emptied with the world stopped. Guarded by CodeCache's mutex where written
// after creation; the code itself may run on any vCPU.

#include <atomic>
#include <memory>
#include <vector>

#include "base/types.h"
#include "x86/ops/ops.h"
#include "x86/translate/decode.h"
#include "x86/translate/mode.h"

namespace anykvm::x86 {

struct Block;

// Where the guest's arithmetic flags are at a site.
enum class FlagsAt : u8 { kHost, kImage, kDead };

// A place in the host code from which control can leave in the middle of a guest instruction: behind a call
// to a thunk, or an instruction that can raise a host signal.
struct Site {
  u32 offset = 0;        // from Block::code
  u16 guest_offset = 0;  // of the guest instruction, from Block::rip
  bool fault = false;    // a signal at `offset`; otherwise a call that returns to `offset`
  FlagsAt flags = FlagsAt::kHost;
  u8 borrowed[2] = {kNoRegister, kNoRegister};  // host registers whose guest value is in Context::borrowed
};

// A direct jump to another block in the same guest page; patched once that block exists.
struct Link {
  Block* from = nullptr;
  u64 target_rip = 0;
  u8* displacement = nullptr;  // executable address of the jump's rel32
  u8* unlinked = nullptr;      // where it points while not linked
  Block* to = nullptr;
  bool flags_in_host = true;  // at the jump
  bool loops = false;         // to where `from` began: to its code_loop
};

// A call of an instruction helper.
struct HelperSite {
  Insn insn;
  Op op = nullptr;
  u64 rip = 0;
  u64 next_rip = 0;
  bool ends_block = false;
  bool continues = false;  // with the block behind, if it is in the jump cache
};

// A memory access by the slow path.
struct SlowSite {
  u64 rip = 0;  // of the instruction, without CS base
  SegmentIndex segment = kDs;
  bool segmented = false;  // the address is an offset within `segment`; otherwise linear
  bool read = false, write = false;
  bool first = true, last = true;  // of its instruction's accesses
  u16 size = 0;
  // Masked vector accesses: only elements with their mask bit set are touched.
  u8 element = 0;       // bytes; 0: not masked
  u8 lanes = 0;         // mask bits: element i is active if bit i, i + elements, i + 2 elements ... is set
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

struct Block {
  Gpa gpa{};
  u64 rip = 0;
  Mode mode{};
  u32 guest_bytes = 0;
  bool kills_flags = false;  // overwrites the arithmetic flags before it reads them
  bool straddles = false;    // its only instruction continues on another page, at gpa2
  Gpa gpa2{};
  std::atomic<bool> alive{true};
  // Executable addresses. Whoever enters at `code` has the guest's flags in Context::flags_image, at
  // `code_host` in the host's. A block that overwrites the flags before it reads them ignores both.
  u8* code = nullptr;
  u8* code_host = nullptr;
  // Where its own jump back goes on: the same as `code_host`, with LoopRegisters and vector state at their
  // places.
  u8* code_loop = nullptr;
  LoopRegisters loop_registers;
  u32 host_bytes = 0;
  u32 lead = 0;  // bytes left out ahead of `code`, so that it begins at a good place in its cache line
  // What the entries jump to once the block is dead.
  u8* stale_exit = nullptr;
  u8* stale_exit_host = nullptr;

  // Its last instruction, if that is an indirect jump, call or return: what to undo where the target cannot
  // be.
  u64 branch_rip = 0;
  i32 branch_moved_stack = 0;

  std::vector<Site> sites;  // ascending offsets
  // Host code and other blocks point to these.
  std::vector<std::unique_ptr<Link>> links;
  std::vector<std::unique_ptr<HelperSite>> helpers;
  std::vector<std::unique_ptr<SlowSite>> slow_sites;
  std::vector<Link*> incoming;

  // Is it the code for these, and not dead?
  bool is(Gpa at, u64 at_rip, const Mode& wanted) const {
    return gpa == at && rip == at_rip && mode == wanted && alive.load(std::memory_order_relaxed);
  }
  const Site* find_site(u32 offset, bool fault) const;
};

}  // namespace anykvm::x86
