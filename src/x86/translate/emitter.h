#pragma once
// The means of which instruction rules are made: guest registers, flags, memory accesses, vector state,
// helper calls, exits. Owner: one translation. Only while CodeCache's mutex is held.

#include <array>
#include <deque>
#include <functional>
#include <vector>

#include "x86/sys/pmu.h"
#include "x86/translate/access_groups.h"
#include "x86/translate/block.h"
#include "x86/translate/decode.h"
#include "x86/translate/flag_plan.h"
#include "x86/translate/host.h"
#include "x86/translate/policy.h"
#include "x86/translate/thunks.h"

namespace anykvm::x86 {

// Does the code at this RIP, on the block's page, overwrite the arithmetic flags before anybody can look at
// them?
using IgnoresFlags = std::function<bool(u64 rip)>;

class Emitter {
 public:
  // `facts`: of the block to be made.
  Emitter(asmjit::x86::Assembler& assembler, const Thunks& thunks, SlotNumbers& slots,
          FarLinkNumbers& far_links, RecordMemory& records, const Block& facts, const FlagPlan& flags,
          const IgnoresFlags& ignores_flags);

  asmjit::x86::Assembler& a;
  const Mode mode;

  // For a block that jumps back to its beginning: what goes before Block::code_loop.
  void begin_loop(bool uses_vector);
  // Starts guest instruction `decoded` at `rip`, the block's `number`th from 0.
  void begin(unsigned number, const Decoded& decoded, const Policy& policy, u64 rip, const FlagUse& flags,
             const GroupPlace& place);
  // Ends it: one that wrote by the slow path may have rewritten the next.
  void end_instruction();
  // The current instruction is complete, but for its jump: it counts (Mode::counts). Moves only; clobbers
  // R11. Those without a call of this count when they end.
  void retire();
  u64 rip() const { return m_rip; }
  u64 next_rip() const;
  // An address that is what it is because of RIP. Flags stay as they are.
  void load_rip(const asmjit::x86::Gp& to, u64 address);
  // `value` cut to the width of RIP in this mode and for this operand size.
  u64 wrap_rip(u64 value, unsigned operand_size) const;

  // --- Guest general registers ---
  u8 host_of(u8 gpr) const { return m_host_of[gpr]; }  // number of the host register, or kNoRegister
  bool resident(u8 gpr) const { return m_host_of[gpr] != kNoRegister; }
  asmjit::x86::Gp reg(u8 gpr, unsigned size = 8) const;  // of a resident one
  void load_gpr(const asmjit::x86::Gp& to, u8 gpr);      // all 64 bits, whatever the size of `to`
  // R11 gets another value than the difference that an access of a group left there.
  void forget_delta() { m_delta_of = GroupPlace::kNone; }
  // Writes the low `size` bytes as the CPU would: 4 clears the upper half, 1 and 2 keep the rest.
  void store_gpr(u8 gpr, const asmjit::x86::Gp& from, unsigned size);

  // --- Flags ---
  void protect_flags() { protect_flags(m_use.live_before); }
  void protect_flags(u32 live);  // host flags are about to be clobbered
  // An instruction reads host flags, or code leaves the block. Clobbers `spare`.
  void flags_to_host(const asmjit::x86::Gp& spare = host::kScratch);
  void flags_written(u32 killed);  // those that it writes whatever its operands are

  // --- Memory. The address is in R10 before, and the host address of the bytes after open_access(). R11 is
  // clobbered. ---
  void effective_offset(const Insn& insn, const asmjit::x86::Gp& to = host::kAddress);
  void open_access(SegmentIndex segment, unsigned size, bool read, bool write, bool first = true,
                   bool last = true);
  // The same; true: the host address is the sum of R10 and R11, which is shorter than bringing it into R10.
  bool open_indexed(SegmentIndex segment, unsigned size, bool read, bool write);
  void open_masked_access(const Decoded& decoded);
  // An access at [base + displacement] by the difference between host and linear addresses, which is left in
  // R11; R10 is free. False, and nothing done, where that is not possible.
  bool open_by_delta(u8 base, i64 displacement, SegmentIndex segment, unsigned size, bool write);
  void close_access(bool last = true);  // after a write
  // Right behind the opening of an access that writes, all of its bytes and not atomically; what follows up
  // to end_crossing() can be emitted twice.
  void begin_crossing();
  void end_crossing();
  // An access to the stack, at RSP + `displacement`: the operand for it, and a register that is free
  // meanwhile.
  struct StackAccess {
    asmjit::x86::Mem operand;
    asmjit::x86::Gp spare;
  };
  StackAccess open_stack(i32 displacement, unsigned size, bool read, bool write, bool first = true,
                         bool last = true);
  // Stack address: RSP + `displacement` by the stack's width, in R10.
  void stack_offset(i32 displacement);
  void move_rsp(i32 displacement);            // adds to the stack pointer
  void set_rsp(const asmjit::x86::Gp& from);  // by the stack's width

  // --- Vector state ---
  void ensure_vector();

  // --- Helpers and ends ---
  void call_helper(const Insn& insn, Op op, u16 flags);  // of HelperFlags
  // A gather or scatter whose operands are in Context::gather; Context::gather.done says whether they were
  // used.
  void call_gather(const Insn& insn, Op op, u16 flags, const GatherForm& form);
  // The same, out of line: where to jump for it. Flags are dead or in the image. A helper that does not end
  // the block goes on at `resume`.
  asmjit::Label helper_aside(const Insn& insn, Op op, u16 flags, asmjit::Label resume = {});
  // Direct; target already wrapped. `next_straddles`: the target continues on another page, so it is never
  // linked to.
  void jump_to(u64 target_rip, bool next_straddles = false);
  void jump_if(asmjit::x86::CondCode condition, u64 target_rip);  // else the block goes on
  // Indirect: R10 holds the target, already wrapped. The instruction has moved the stack pointer by
  // `moved_stack`.
  void jump_to_address(i32 moved_stack);
  bool ended() const { return m_ended; }
  void embed_instruction(const u8* bytes, unsigned length);  // the guest's own

  // A comparison and the branch behind it, which the host takes for one operation unless a cache line ends in
  // between. Offsets in the code.
  struct Pair {
    u32 begin, end;
  };
  const std::vector<Pair>& pairs() const { return m_pairs; }

  // Sites
  void record_fault_site(const u8* borrowed = nullptr);  // the next host instruction may raise a signal
  void record_call_site();

  // Out-of-line parts and the block's record; once, after the last instruction. The code begins at `start` of
  // the code memory.
  Block* finish(u32 start);

 private:
  // Where flags are, and the recipe for them where they are recovered.
  struct FlagsNow {
    FlagsAt at = FlagsAt::kHost;
    u8 recipe = kNoRecipe;
  };
  struct Miss {
    asmjit::Label entry, resume;
    std::size_t tag = 0;    // in the Context, of the TLB entry at R11, if there is no slot
    u64 info = 0;           // MissInfo
    u8 base = kNoRegister;  // by delta: the access is at base + displacement
    i32 displacement = 0;
    bool indexed = false;  // the host address is R10 + R11
    u16 guest_offset = 0;
    FlagsNow flags;
    // Of one that knows_crossing(): the rest of the instruction's code, which runs on the copy as well.
    u32 rest_begin = 0, rest_end = 0;
    asmjit::Label after{};
  };
  struct Aside {
    asmjit::Label entry, resume;
    const HelperSite* site;
    u16 flags, guest_offset;
  };
  struct Exit {
    asmjit::Label label;
    u64 target;
    FlagsNow flags;
    bool in_loop;         // LoopRegisters are at their places there
    bool links;           // by the jump whose rel32 is at `displacement`
    bool narrow = false;  // to a block in which each access checks for itself
    u32 displacement = 0;
    asmjit::Label jump{};  // if it is valid, from where the linked jump is to be made
  };

  // A jump that is not to be linked.
  struct FarExit {
    asmjit::Label label;
    u64 target;
    FlagsAt flags;
  };

  // Where FarLink::site is to say.
  struct FarSite {
    FarLink* link;
    u32 offset;
  };

  // A call of the thunk that brings the guest's vector state into the registers.
  struct VectorLoad {
    asmjit::Label entry, resume;
  };

  void count(Counted what, i64 events);
  void count_pending();
  void add_own_events();
  void show_overflows();
  asmjit::x86::Mem attention() const;
  EventCounts events_of(const Decoded& decoded) const;
  asmjit::x86::Mem address_of(const Insn& insn);
  u32 offset() const { return static_cast<u32>(a.offset()); }
  void record_site(bool fault, FlagsNow flags, const u8* borrowed);
  void add_site(Site site, u8 recipe);
  FlagsNow flags_now(u8 recipe) const;
  FlagsNow flags_before() const { return flags_now(m_use.before); }
  FlagsNow flags_after() const { return flags_now(m_use.after); }
  const FlagRecovery* recovery(u8 recipe);
  void load_unlent(u8 gpr);
  void settle(FlagsNow* flags);
  void ensure_vector_without_flags();
  void slow_access(SlowSite* site);
  void fast_access(unsigned size, bool write, bool masked, bool indexed = false);
  bool prepare_access(SegmentIndex segment, bool write);
  static std::size_t slot_offset(const Miss& miss);
  bool take_slot(Miss& miss);
  void check_slot(const Miss& miss, const asmjit::x86::Gp& linear);
  std::size_t tlb_offset() const;
  void check_tlb(Miss& miss, const asmjit::x86::Gp& linear);
  void keep_group_delta(const Miss& miss, bool slot);
  void load_linear(const asmjit::x86::Gp& to, const Miss& miss);
  Miss new_miss(unsigned size, bool write, bool masked);
  Miss new_leader_miss(unsigned size, bool write);
  void look_into_slot(Miss& miss);
  void look_into_tlb(Miss& miss);
  bool wants_slot() const;
  bool goes_to_bus() const;
  Gpa guest_address() const { return m_block.gpa + (m_rip - m_block.rip); }  // of the instruction
  std::size_t code_page_offset() const;
  void rip_relative_offset(const Insn& insn, const asmjit::x86::Gp& to);
  void add_segment_base(SegmentIndex segment);
  SlowSite* new_slow_site(SegmentIndex segment, unsigned size, bool read, bool write, bool first, bool last);
  bool linkable(u64 target) const;
  Exit& new_exit(u64 target, bool in_loop = false);
  Exit& new_stop(u64 target, bool in_loop);
  Exit& add_exit(const Exit& exit);
  asmjit::Label new_narrow_exit(const Miss& miss);
  void emit_exit(Exit& exit);
  void emit_link_exit(Exit& exit, Block* block, u32 start);
  void emit_far_exit(const FarExit& exit);
  void emit_miss(const Miss& miss);
  void emit_crossing(const Miss& miss);
  void emit_aside(const Aside& aside);
  const HelperSite* new_helper_site(const Insn& insn, Op op, u16 flags);
  const u8* string_thunk(const HelperSite& site) const;
  void call_helper_thunk(const HelperSite* site, u16 flags);
  const u8* leave_thunk(FlagsAt flags) const;
  void leave_to(u64 target);
  void poll(u64 target);
  void jump_back(u64 target);
  void begin_first_round();
  void begin_next_round();
  void jump_by_link(Exit& exit);
  void leave_loop();
  void emit_jump_out(Exit& exit);
  bool jumps_on() const;
  void jump_by_cache(u64 target);
  bool jump_by_far_link(u64 target);
  void jump_by_index(asmjit::Label& miss);
  void emit_gate();
  void jump_through_cache(const asmjit::x86::Mem& tag, const asmjit::x86::Mem& destination,
                          asmjit::Label& miss);
  void emit_cache_miss(asmjit::Label miss, RecordRef left_by);
  void align_displacement(unsigned opcode_bytes);

  const Thunks& m_thunks;
  SlotNumbers& m_slots;
  FarLinkNumbers& m_far_links;
  RecordMemory& m_records;
  Block m_block;
  const FlagPlan& m_flag_plan;
  const IgnoresFlags& m_ignores_flags;
  std::array<u8, 16> m_host_of{};
  bool m_loops = false;      // the block has a code_loop
  u32 m_instruction_at = 0;  // the guest's last one
  std::vector<Pair> m_pairs;
  u64 m_rip = 0;
  const Decoded* m_decoded = nullptr;
  GroupPlace m_place;
  std::array<std::size_t, AccessGroups::kMostGroups> m_group_delta{};  // where it is in the Context
  u8 m_delta_of = GroupPlace::kNone;                                   // the group whose difference is in R11
  FlagUse m_use;
  FlagsAt m_flags = FlagsAt::kHost;
  u32 m_flags_lost = 0;  // those that are not where m_flags says
  bool m_vector_live = false;
  bool m_ended = false;
  bool m_wrote_slowly = false;  // the current instruction
  bool m_crossing = false;      // it has code for a write across pages
  EventCounts m_own;            // of the current instruction, which neither it nor its helper has counted
  std::array<unsigned, kCountedByCode> m_pending{};  // of those before it, by Counted
  SlowSite* m_open_slow = nullptr;
  FlagsNow m_open_slow_flags;
  asmjit::Label m_cache_miss, m_indirect_miss;
  std::vector<Miss> m_misses;
  std::vector<Aside> m_asides;
  std::deque<Exit> m_exits;
  std::vector<FarExit> m_far_exits;
  std::vector<FarSite> m_far_sites;
  std::vector<VectorLoad> m_vector_loads;
  std::vector<Site> m_sites;
  std::array<const FlagRecovery*, FlagPlan::kMostRecipes> m_recoveries{};
};

}  // namespace anykvm::x86
