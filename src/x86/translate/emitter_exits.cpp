// How translated code calls C++ and where it ends: helpers, links, jumps, and the parts that stand out of
// line.
#include "x86/translate/emitter.h"

#include <bit>

#include "base/optimizations.h"
#include "x86/ops/string_common.h"

namespace anykvm::x86 {

using namespace asmjit::x86;  // register names
using host::kAddress;
using host::kScratch;

namespace {

// INT clears TF on its way, so the single-step trap that was due is not taken (SDM 3B 18.3.1.4); SYSCALL and
// SYSRET see to theirs.
bool swallows_step_trap(Op op) {
  return op == op_int || op == op_int3 || op == op_int1 || op == op_into || op == op_syscall ||
         op == op_sysret;
}

}  // namespace

const HelperSite* Emitter::new_helper_site(const Insn& insn, Op op, u16 flags) {
  const bool ends_block = flags & kOpEnd, alone = mode.step || mode.slow;
  const bool continues = ends_block && !alone && optimizations().chaining;
  if (mode.step && swallows_step_trap(op)) m_block.swallows_step_trap = true, m_block.into = op == op_into;
  return m_records.make(HelperSite{insn, op, m_rip, next_rip(), ends_block || alone, continues,
                                   (flags & kOpSerializes) != 0, m_block.roams != 0, m_block.code_page,
                                   events_of(*m_decoded)});
}

// For REP MOVS and REP STOS; null for others.
const u8* Emitter::string_thunk(const HelperSite& site) const {
  const Insn& insn = site.insn;
  const bool strings = site.op == op_movs || site.op == op_stos;
  if (!strings || !(insn.rep || insn.repne) || !optimizations().strings) return nullptr;
  const SegmentIndex segment = string_source_segment(insn);
  const bool plain = mode.code64() && mode.direct_memory() && !mode.step && insn.address_size == 8 &&
                     segment != kFs && segment != kGs;
  if (!plain || mode.counts()) return nullptr;
  const int shift = std::countr_zero(insn.operand_size);
  return site.op == op_movs ? m_thunks.move_string[shift] : m_thunks.store_string[shift];
}

void Emitter::call_helper_thunk(const HelperSite* site, u16 flags) {
  const u8* thunk = flags & kOpKeepsVector ? m_thunks.helper_keeping_vector : m_thunks.helper;
  if (const u8* string = string_thunk(*site)) {
    thunk = string;
    a.mov(kScratch.r32(), static_cast<u32>(tlb_offset()));
  }
  a.mov(kAddress, reinterpret_cast<u64>(site));
  a.call(asmjit::Imm(reinterpret_cast<u64>(thunk)));
}

void Emitter::call_helper(const Insn& insn, Op op, u16 flags) {
  protect_flags(kFlagsArithmetic);
  forget_delta();
  call_helper_thunk(new_helper_site(insn, op, flags), flags);
  m_own = {};
  record_site(false, {FlagsAt::kImage}, nullptr);
  m_flags = FlagsAt::kImage;
  m_flags_lost = 0;
  if (!(flags & kOpKeepsVector)) m_vector_live = false;
  if (flags & kOpEnd) m_ended = true;
}

void Emitter::call_gather(const Insn& insn, Op op, u16 flags, const GatherForm& form) {
  forget_delta();
  a.mov(kAddress, reinterpret_cast<u64>(new_helper_site(insn, op, flags)));
  a.mov(kScratch.r32(), GatherInfo::make(form, mode.mmu));
  a.call(asmjit::Imm(reinterpret_cast<u64>(m_thunks.gather)));
  record_site(false, {FlagsAt::kImage}, nullptr);
  m_vector_live = false;
}

asmjit::Label Emitter::helper_aside(const Insn& insn, Op op, u16 flags, asmjit::Label resume) {
  const HelperSite* site = new_helper_site(insn, op, flags);
  m_asides.push_back({a.newLabel(), resume, site, flags, static_cast<u16>(m_rip - m_block.rip)});
  if (resume.isValid() && !(flags & kOpKeepsVector)) m_vector_live = false;
  return m_asides.back().entry;
}

// Links join blocks of one page only, so that a change of the guest's mappings never leaves a link behind.
bool Emitter::linkable(u64 target) const {
  if (mode.step || mode.slow || m_block.straddles || !optimizations().links) return false;
  return ((target + mode.cs_base) ^ (m_block.rip + mode.cs_base)) < kPageSize;
}

Emitter::Exit& Emitter::new_exit(u64 target, bool in_loop) {
  return add_exit(
      {.label = a.newLabel(), .target = target, .flags = flags_after(), .in_loop = in_loop, .links = true});
}

// What settle() needs is made now: the records of finish() must stay together.
Emitter::Exit& Emitter::add_exit(const Exit& exit) {
  recovery(exit.flags.recipe);
  return m_exits.emplace_back(exit);
}

// Before the instruction of `miss`, to a block that makes each access by itself.
asmjit::Label Emitter::new_narrow_exit(const Miss& miss) {
  Exit& exit = new_exit(m_block.rip + miss.guest_offset);
  exit.flags = miss.flags;
  exit.narrow = true;
  exit.jump = a.newLabel();
  return exit.jump;
}

// To attend to something: nothing is to be linked there.
Emitter::Exit& Emitter::new_stop(u64 target, bool in_loop) {
  return add_exit(
      {.label = a.newLabel(), .target = target, .flags = flags_after(), .in_loop = in_loop, .links = false});
}

// A rel32 is patched while other vCPUs may run it, so it must not straddle an aligned eight bytes.
void Emitter::align_displacement(unsigned opcode_bytes) {
  while (((a.offset() + opcode_bytes) & 7) > 4) a.nop();
}

const u8* Emitter::leave_thunk(FlagsAt flags) const {
  return flags == FlagsAt::kHost ? m_thunks.leave_flags_in_host : m_thunks.leave_flags_in_image;
}

void Emitter::leave_to(u64 target) {
  load_rip(kAddress, target);
  a.mov(ANYKVM_GS(state.rip), kAddress);
  a.mov(kScratch.r32(), kNoRecord);
  a.jmp(asmjit::Imm(reinterpret_cast<u64>(leave_thunk(m_flags))));
}

// Every loop has a backward jump, so that is where the attention byte is looked at: jumps to the place for it
// if something is to be attended to.
void Emitter::poll(u64 target) {
  count_pending();
  const Exit& stop = new_stop(target, m_loops && target == m_block.rip);
  if (m_flags != FlagsAt::kHost) {
    a.cmp(attention(), 0);
    a.jne(stop.label);
    return;
  }
  asmjit::Label go = a.newLabel();
  a.mov(kScratch, rcx);
  if (attention().size() == 1) {
    a.movzx(ecx, attention());
  } else {
    a.mov(ecx, attention());
  }
  a.jecxz(rcx, go);
  a.mov(rcx, kScratch);
  a.jmp(stop.label);
  a.bind(go);
  a.mov(rcx, kScratch);
}

// Brings flags to where the beginning of the loop expects them.
void Emitter::begin_next_round() {
  if (m_flag_plan.entry() == EntryFlags::kHost) flags_to_host();
  if (m_flag_plan.entry() != EntryFlags::kImage) return;
  if (m_flag_plan.round_recipe() == kNoRecipe) return protect_flags(kFlagsArithmetic);
  if (m_block.round_register == kNoRegister) a.mov(ANYKVM_GS(later_round), 1);
  protect_flags(0);
}

void Emitter::jump_back(u64 target) {
  show_overflows();
  const bool in_loop = m_loops && target == m_block.rip;
  if (in_loop) begin_next_round();
  if (m_use.after != kNoRecipe && m_ignores_flags(target)) protect_flags(0);
  const bool free_flags = m_flags != FlagsAt::kHost;
  if (!free_flags) poll(target);
  Exit& exit = new_exit(target, in_loop);
  if (!free_flags) return jump_by_link(exit);
  const Exit& stop = new_stop(target, in_loop);
  a.cmp(attention(), 0);
  align_displacement(2);
  a.long_().je(exit.label);
  exit.displacement = offset() - 4;
  a.jmp(stop.label);
}

void Emitter::jump_by_link(Exit& exit) {
  align_displacement(1);
  a.long_().jmp(exit.label);
  exit.displacement = offset() - 4;
}

void Emitter::jump_to(u64 target, bool next_straddles) {
  m_ended = true;
  count_pending();
  FlagsAt before = m_flags;  // what follows is another path
  if (m_loops && target != m_block.rip) leave_loop();
  if (linkable(target) && !next_straddles) {
    if (target <= m_rip) {
      jump_back(target);
    } else {
      jump_by_link(new_exit(target));
    }
  } else if (!jumps_on()) {
    leave_to(target);
  } else if (!jump_by_far_link(target)) {
    protect_flags(kFlagsArithmetic);
    jump_by_cache(target);
  }
  m_flags = before;
}

// Flags stay where they are. A loop has a jump backwards or one through the jump cache, so jumps forwards
// need not look at the attention byte.
bool Emitter::jump_by_far_link(u64 target) {
  const bool wanted = optimizations().far_links && !m_block.straddles && !mode.counts();
  if (!wanted || m_flags == FlagsAt::kRecovered) return false;
  const u32 number = m_far_links.next(m_flags == FlagsAt::kHost);
  if (number == kNoFarLink) return false;
  if (target <= m_rip) poll(target);
  const bool image = m_flags != FlagsAt::kHost;
  FarLink* link = m_records.make(FarLink{.target = target - (m_block.roams ? Block::kNowhere : 0),
                                         .flags_in_image = image,
                                         .pair = static_cast<u16>(number / 2),
                                         .code_page = m_block.code_page});
  a.mov(kScratch.r32(), m_records.ref(link));
  a.align(asmjit::AlignMode::kCode, 8);
  m_far_sites.push_back({link, offset()});
  a.long_().jmp(asmjit::Imm(reinterpret_cast<u64>(m_thunks.far_miss[image])));
  constexpr u8 kRestOfJumpByPlace[3] = {0xcc, 0xcc, 0xcc};  // far_links.cpp
  a.embed(kRestOfJumpByPlace, sizeof kRestOfJumpByPlace);
  return true;
}

// Flags are in the image.
void Emitter::jump_by_cache(u64 target) {
  show_overflows();
  load_rip(kAddress, target);
  if (m_block.roams) return jump_by_index(m_cache_miss);
  const std::size_t entry =
      offsetof(Context, jumps) + sizeof(JumpEntry) * jump_cache_index(target, mode.cpl == 3);
  jump_through_cache(host::gs(entry + offsetof(JumpEntry, tag)),
                     host::gs(entry + offsetof(JumpEntry, target)), m_cache_miss);
}

// See Block::gate_host.
void Emitter::emit_gate() {
  m_block.gate_host = static_cast<u16>(offset());
  host::save_flags(a);
  m_block.gate_image = static_cast<u16>(offset());
  jump_by_cache(m_block.rip);
}

void Emitter::embed_instruction(const u8* bytes, unsigned length) {
  m_instruction_at = offset();
  a.embed(bytes, length);
}

void Emitter::jump_if(CondCode condition, u64 target) {
  flags_to_host();
  constexpr u32 kLongBranch = 6;
  m_pairs.push_back({m_instruction_at, offset() + kLongBranch});
  if (linkable(target) && target > m_rip) {
    Exit& exit = new_exit(target);
    if (m_block.loop_registers.count) {
      exit.jump = a.newLabel();
      a.j(condition, exit.jump);
      return;
    }
    align_displacement(2);
    a.long_().j(condition, exit.label);
    exit.displacement = offset() - 4;
    return;
  }
  if (!linkable(target)) {
    m_far_exits.push_back({a.newLabel(), target, m_flags});
    a.j(condition, m_far_exits.back().label);
    return;
  }
  asmjit::Label not_taken = a.newLabel();
  a.j(static_cast<CondCode>(static_cast<unsigned>(condition) ^ 1), not_taken);
  jump_to(target);
  m_ended = false;
  a.bind(not_taken);
}

void Emitter::jump_to_address(i32 moved_stack) {
  m_ended = true;
  m_block.branch_offset = static_cast<u16>(m_rip - m_block.rip);
  m_block.branch_moved_stack = moved_stack;
  show_overflows();
  protect_flags(kFlagsArithmetic);
  if (!jumps_on()) {
    m_indirect_miss = a.newLabel();
    a.mov(ANYKVM_GS(state.rip), kAddress);
    a.jmp(m_indirect_miss);
    return;
  }
  jump_by_index(m_indirect_miss);
}

void Emitter::jump_by_index(asmjit::Label& miss) {
  a.rorx(kScratch, kAddress, 12);
  a.xor_(kScratch.r32(), kAddress.r32());
  a.and_(kScratch.r32(), kJumpIndexMask);
  static_assert(sizeof(JumpEntry) == 16);
  const std::size_t first = offsetof(Context, jumps) + sizeof(JumpEntry) * first_jumps(mode.cpl == 3);
  jump_through_cache(host::gs_indexed(first + offsetof(JumpEntry, tag), kScratch),
                     host::gs_indexed(first + offsetof(JumpEntry, target), kScratch), miss);
}

// Where the dispatcher need not be asked.
bool Emitter::jumps_on() const { return !mode.step && !mode.slow && optimizations().jumps; }

// R10 = target; flags are in the image. See LinkStamp for the comparison.
void Emitter::jump_through_cache(const Mem& tag, const Mem& destination, asmjit::Label& miss) {
  if (!miss.isValid()) miss = a.newLabel();
  a.mov(ANYKVM_GS(state.rip), kAddress);
  a.add(kAddress, ANYKVM_GS(stamp));
  a.add(kAddress, tag);
  a.jnz(miss);
  a.jmp(destination);
}

// --- Out-of-line parts ---

void Emitter::emit_jump_out(Exit& exit) {
  a.bind(exit.jump);
  leave_loop();
  settle(&exit.flags);
  jump_by_link(exit);
}

// The dispatcher has RIP from the link.
void Emitter::emit_link_exit(Exit& exit, Block* block, u32 start) {
  if (exit.jump.isValid()) emit_jump_out(exit);
  a.bind(exit.label);
  const Link* link = m_records.make(Link{.from = m_records.ref(block),
                                         .displacement = start + exit.displacement,
                                         .unlinked = start + offset(),
                                         .target = static_cast<i16>(exit.target - m_block.rip),
                                         .flags_in_host = exit.flags.at != FlagsAt::kImage,
                                         .loops = exit.in_loop && exit.target == m_block.rip,
                                         .narrow = exit.narrow});
  ++block->link_count;
  if (exit.in_loop) leave_loop();
  settle(&exit.flags);
  a.mov(kScratch.r32(), m_records.ref(link));
  a.jmp(asmjit::Imm(reinterpret_cast<u64>(leave_thunk(exit.flags.at))));
}

void Emitter::emit_exit(Exit& exit) {
  a.bind(exit.label);
  if (exit.in_loop) leave_loop();
  settle(&exit.flags);
  load_rip(kAddress, exit.target);
  a.mov(ANYKVM_GS(state.rip), kAddress);
  a.mov(kScratch.r32(), 0);
  a.jmp(asmjit::Imm(reinterpret_cast<u64>(leave_thunk(exit.flags.at))));
}

void Emitter::emit_far_exit(const FarExit& exit) {
  a.bind(exit.label);
  m_flags = exit.flags;
  jump_to(exit.target);
}

void Emitter::emit_miss(const Miss& miss) {
  const bool slot = MissInfo::has_slot(miss.info), by_delta = miss.base != kNoRegister;
  const u8* thunk = slot ? m_thunks.slot_miss[mode.nested()][MissInfo::write(miss.info)] : m_thunks.tlb_miss;
  a.bind(miss.entry);
  if (by_delta) {
    load_linear(kAddress, miss);
  } else if (slot) {
    a.add(kAddress, host::gs(slot_offset(miss) + offsetof(AccessSlot, first)));
  } else {
    a.add(kAddress, host::gs_indexed(miss.tag, kScratch));
  }
  a.mov(miss.info >> 32 ? Gp(kScratch) : Gp(kScratch.r32()), miss.info);
  a.call(asmjit::Imm(reinterpret_cast<u64>(thunk)));
  add_site({offset(), miss.guest_offset, false, miss.flags.at, {kNoRegister, kNoRegister}},
           miss.flags.recipe);
  if (MissInfo::knows_split_pages(miss.info)) {
    a.cmp(kAddress, kSplitPages);
    a.je(new_narrow_exit(miss));
  }
  if (by_delta) {
    a.mov(kScratch, kAddress);
    load_linear(kAddress, miss);
    a.sub(kScratch, kAddress);
  } else if (miss.indexed) {
    a.mov(kScratch.r32(), 0);
  }
  if (MissInfo::knows_crossing(miss.info)) emit_crossing(miss);
  a.jmp(miss.resume);
}

// The same code again, and the copy that it wrote to goes where it belongs.
void Emitter::emit_crossing(const Miss& miss) {
  a.cmp(ANYKVM_GS(crossing), 0);
  a.je(miss.resume);
  const u32 moved = offset() - miss.rest_begin;
  const u8* code = a.bufferData();
  const std::vector<u8> rest(code + miss.rest_begin, code + miss.rest_end);
  a.embed(rest.data(), rest.size());
  const std::size_t sites = m_sites.size();
  for (std::size_t i = 0; i < sites; ++i) {
    Site site = m_sites[i];
    if (site.offset < miss.rest_begin || site.offset >= miss.rest_end) continue;
    site.offset += moved;
    m_sites.push_back(site);
  }
  a.call(asmjit::Imm(reinterpret_cast<u64>(m_thunks.commit_crossing)));
  a.jmp(miss.after);
}

void Emitter::emit_aside(const Aside& aside) {
  a.bind(aside.entry);
  call_helper_thunk(aside.site, aside.flags);
  add_site({offset(), aside.guest_offset, false, FlagsAt::kImage, {kNoRegister, kNoRegister}}, kNoRecipe);
  if (!aside.resume.isValid()) return;
  // There it is counted again.
  for (unsigned i = 0; i < kCountedByCode; ++i) {
    if (const u8 events = aside.site->counts.of[i]) count(static_cast<Counted>(i), -i64{events});
  }
  a.jmp(aside.resume);
}

Block* Emitter::finish(u32 start) {
  for (const FarExit& exit : m_far_exits) emit_far_exit(exit);
  for (const Miss& miss : m_misses) emit_miss(miss);
  for (const Aside& aside : m_asides) emit_aside(aside);
  for (const VectorLoad& load : m_vector_loads) {
    a.bind(load.entry);
    a.call(asmjit::Imm(reinterpret_cast<u64>(m_thunks.load_vector)));
    a.jmp(load.resume);
  }
  if (m_block.straddles && jumps_on()) emit_gate();
  Block* block = m_records.make(m_block);
  for (Exit& exit : m_exits) {
    if (exit.links) {
      emit_link_exit(exit, block, start);
    } else {
      emit_exit(exit);
    }
  }
  for (u32 word : site_words::pack(std::move(m_sites))) {
    m_records.make(word);
    ++block->site_words;
  }
  emit_cache_miss(m_cache_miss, kNoRecord);
  emit_cache_miss(m_indirect_miss, m_records.ref(block) | kIndirectBranch);
  for (const FarSite& site : m_far_sites) site.link->site = (start + site.offset) / 8 & 0x7fffffff;
  return block;
}

void Emitter::emit_cache_miss(asmjit::Label miss, RecordRef left_by) {
  if (!miss.isValid()) return;
  a.bind(miss);
  a.mov(kScratch.r32(), left_by);
  a.jmp(asmjit::Imm(
      reinterpret_cast<u64>(jumps_on() ? m_thunks.jump_miss[mode.cpl == 3] : m_thunks.leave_flags_in_image)));
}

}  // namespace anykvm::x86
