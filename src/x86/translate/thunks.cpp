#include "x86/translate/thunks.h"

#include <array>
#include <functional>

#include "x86/translate/code_memory.h"
#include "x86/translate/host.h"
#include "x86/translate/string_thunks.h"

namespace anykvm::x86 {
namespace {

using namespace asmjit::x86;  // register names
using host::gpr_slot;

// The guest registers in host registers that C++ does not preserve, but for the scratch ones.
constexpr u8 kCallerSaved[] = {kRax, kRcx, kRdx, kRsi, kRdi, kR8, kR9};
constexpr u8 kCalleeSaved[] = {kRbx, kRbp, kR12, kR13, kR14, kRsp};

Gp host_gp(u8 gpr) { return gpq(host::register_of(gpr)); }

void save_caller_saved(Assembler& a) {
  for (u8 g : kCallerSaved) a.mov(gpr_slot(g), host_gp(g));
}
void load_caller_saved(Assembler& a) {
  for (u8 g : kCallerSaved) a.mov(host_gp(g), gpr_slot(g));
}
void save_callee_saved(Assembler& a) {
  for (u8 g : kCalleeSaved) a.mov(gpr_slot(g), host_gp(g));
}
void load_callee_saved(Assembler& a) {
  for (u8 g : kCalleeSaved) a.mov(host_gp(g), gpr_slot(g));
}

// C++ must find its own floating-point environment and free to use vector registers. Clobbers RAX and RDX.
void save_vector_if_live(Assembler& a) {
  asmjit::Label dead = a.newLabel();
  a.cmp(ANYKVM_GS(vector_dead), 0);
  a.jne(dead);
  a.mov(eax, host::gs(offsetof(Context, xsave_mask), 4));
  a.mov(edx, host::gs(offsetof(Context, xsave_mask) + 4, 4));
  a.xsave64(host::gs(offsetof(CpuState, xsave), 0));
  a.fninit();
  a.fldcw(host::gs(offsetof(Context, host_fcw), 2));
  a.ldmxcsr(ANYKVM_GS(host_mxcsr));
  a.vzeroupper();
  a.mov(ANYKVM_GS(vector_dead), 1);
  a.bind(dead);
}

void return_to_cpp(Assembler& a) {
  a.mov(rsp, ANYKVM_GS(host_rsp));
  a.add(rsp, 8);
  a.pop(r15);
  a.pop(r14);
  a.pop(r13);
  a.pop(r12);
  a.pop(rbp);
  a.pop(rbx);
  a.ret();
}

void make_enter(Assembler& a) {
  a.push(rbx);
  a.push(rbp);
  a.push(r12);
  a.push(r13);
  a.push(r14);
  a.push(r15);
  a.sub(rsp, 8);
  a.mov(ANYKVM_GS(host_rsp), rsp);
  a.mov(r11, rsi);
  load_caller_saved(a);
  load_callee_saved(a);
  a.jmp(r11);
}

// R11: the link, handed to C++.
void make_leave_flags_in_image(Assembler& a) {
  save_caller_saved(a);
  save_callee_saved(a);
  save_vector_if_live(a);
  a.mov(ANYKVM_GS(leave), static_cast<u64>(Leave::kLookup));
  a.mov(rax, r11);
  return_to_cpp(a);
}

void make_jump_miss(Assembler& a, bool user, const u8* leave) {
  asmjit::Label miss = a.newLabel();
  const std::size_t second = offsetof(Context, jumps) + sizeof(JumpEntry) * second_jumps(user);
  a.mov(ANYKVM_GS(jump_spill), r11);
  a.mov(r10, ANYKVM_GS(state.rip));
  a.rorx(r11, r10, kSecondJumpShift);
  a.xor_(r11d, r10d);
  a.and_(r11d, kSecondJumpMask);
  a.add(r10, ANYKVM_GS(stamp));
  a.add(r10, host::gs_indexed(second + offsetof(JumpEntry, tag), r11));
  a.jnz(miss);
  a.jmp(host::gs_indexed(second + offsetof(JumpEntry, target), r11));
  a.bind(miss);
  a.mov(r11, ANYKVM_GS(jump_spill));
  a.jmp(asmjit::Imm(reinterpret_cast<u64>(leave)));
}

// R11 = FarLink, R10 = target; flags are in the image.
void fill_far_link(Assembler& a, const u8* leave) {
  asmjit::Label miss = a.newLabel();
  a.mov(ANYKVM_GS(far_misses_left), kFarMissesAside);
  save_caller_saved(a);
  a.mov(rdi, ANYKVM_GS(self));
  a.mov(rsi, ANYKVM_GS(jump_spill));
  a.call(asmjit::Imm(reinterpret_cast<u64>(&anykvm_follow_far_link)));
  a.mov(r10, rax);
  load_caller_saved(a);
  a.mov(r11d, kNoRecord);
  a.test(r10, r10);
  a.jz(miss);
  a.jmp(r10);
  a.bind(miss);
  a.jmp(asmjit::Imm(reinterpret_cast<u64>(leave)));
}

// The jump cache has what the place has not, in most cases. Flags are in the image.
void make_far_miss(Assembler& a, const u8* const (&jump_miss)[2], const u8* leave, const u8* records) {
  asmjit::Label fill = a.newLabel(), miss = a.newLabel(), kernel = a.newLabel(), kernel_miss = a.newLabel();
  const auto is_user = [&a] { a.cmp(ANYKVM_GS(state.cpl), 3); };
  a.mov(ANYKVM_GS(jump_spill), r11);
  a.mov(r10, reinterpret_cast<u64>(records));
  a.add(r11, r10);
  a.movzx(r10d, word_ptr(r11, offsetof(FarLink, code_page)));
  a.mov(r10, host::gs_indexed(offsetof(Context, code_pages), r10));
  a.add(r10, ptr(r11, offsetof(FarLink, target)));
  a.mov(ANYKVM_GS(state.rip), r10);
  a.dec(ANYKVM_GS(far_misses_left));
  a.jz(fill);
  a.rorx(r11, r10, 12);
  a.xor_(r11d, r10d);
  a.and_(r11d, kJumpIndexMask);
  is_user();
  a.jne(kernel);
  a.add(r11d, first_jumps(true) * 2);
  a.bind(kernel);
  a.add(r10, ANYKVM_GS(stamp));
  a.add(r10, host::gs_indexed(offsetof(Context, jumps) + offsetof(JumpEntry, tag), r11));
  a.jnz(miss);
  a.jmp(host::gs_indexed(offsetof(Context, jumps) + offsetof(JumpEntry, target), r11));
  a.bind(miss);
  a.mov(r11d, kNoRecord);
  is_user();
  a.jne(kernel_miss);
  a.jmp(asmjit::Imm(reinterpret_cast<u64>(jump_miss[1])));
  a.bind(kernel_miss);
  a.jmp(asmjit::Imm(reinterpret_cast<u64>(jump_miss[0])));
  a.bind(fill);
  fill_far_link(a, leave);
}

// The common end of thunks whose C++ part wants to leave: every register is saved, the caller's return
// address is on the stack.
void leave_from_call(Assembler& a) {
  a.pop(rax);
  a.mov(ANYKVM_GS(leave_pc), rax);
  a.xor_(eax, eax);
  return_to_cpp(a);
}

// R10 = linear address, R11 = MissInfo: to C++, which walks the page tables.
void make_tlb_miss(Assembler& a) {
  asmjit::Label leave = a.newLabel();
  save_caller_saved(a);
  a.mov(rdi, ANYKVM_GS(self));
  a.mov(rsi, r10);
  a.mov(rdx, r11);
  a.sub(rsp, 8);
  a.call(asmjit::Imm(reinterpret_cast<u64>(&anykvm_tlb_miss)));
  a.add(rsp, 8);
  a.mov(r10, rax);
  a.test(rax, rax);
  a.jz(leave);
  load_caller_saved(a);
  a.ret();
  a.bind(leave);
  save_callee_saved(a);
  save_vector_if_live(a);
  leave_from_call(a);
}

// gs:[Context::access + offset + index << shift]
Mem access_field(std::size_t offset, const Gp& index, unsigned shift, u32 size) {
  Mem memory = ptr_abs(offsetof(Context, access) + offset, index, shift, size);
  memory.setSegment(gs);
  return memory;
}

// R11 = offset of the slot, which was empty. RAX is free.
void journal_slot(Assembler& a) {
  const Mem size = host::gs(offsetof(Context, access) + offsetof(AccessSlots, journal_size), 4);
  a.mov(eax, size);
  a.shr(r11d, 5);
  a.mov(access_field(offsetof(AccessSlots, journal), rax, 2, 4), r11d);
  a.inc(eax);
  a.mov(size, eax);
}

// A user-mode access whose slot does not have the page: from the TLB, else by `tlb_miss`. R10 = linear
// address, R11 = MissInfo.
void make_slot_miss(Assembler& a, bool nested, bool write, const u8* tlb_miss) {
  static_assert(sizeof(AccessSlot) == 32 && sizeof(SlotNotes) == 8);
  const std::size_t table = offsetof(Context, tlb) + sizeof(TlbTable) * (nested ? kMmuNestedUser : kMmuUser);
  const std::size_t tags = table + (write ? offsetof(TlbTable, write_tag) : offsetof(TlbTable, read_tag));
  auto slot_field = [](std::size_t offset) {
    return access_field(offsetof(AccessSlots, slots) + offset, r11, 0, 8);
  };
  const std::array saved = {rax, rcx, rdx};
  auto spill = [](unsigned i) { return host::gs(offsetof(Context, miss_spill) + 8 * i); };
  auto restore = [&] {
    for (unsigned i = 0; i < saved.size(); ++i) a.mov(saved[i], spill(i));
  };
  asmjit::Label miss = a.newLabel(), crosses = a.newLabel(), in_journal = a.newLabel();
  for (unsigned i = 0; i < saved.size(); ++i) a.mov(spill(i), saved[i]);
  a.mov(rdx, r11);
  a.shr(rdx, MissInfo::kSlotShift);
  a.and_(edx, kSlotCount - 1);
  // C++ sees now and then whether the slot is of use and whether it can have a larger extent.
  a.inc(access_field(offsetof(AccessSlots, misses), rdx, 0, 1));
  a.test(access_field(offsetof(AccessSlots, misses), rdx, 0, 1), kSlotMissesAside - 1);
  a.jz(miss);
  a.rorx(eax, r10d, 12);
  a.and_(eax, kTlbEntries - 1);
  a.mov(rcx, r10);
  a.sub(rcx, host::gs_indexed(tags, rax));
  a.cmp(rcx, kPageSize - 1);
  a.ja(miss);
  a.cmp(cx, r11w);
  a.ja(crosses);
  a.movzx(ecx, r11w);
  a.inc(ecx);
  a.mov(r11d, edx);
  a.shl(r11d, 5);
  a.mov(rdx, host::gs_indexed(table + offsetof(TlbTable, delta), rax));
  a.mov(slot_field(offsetof(AccessSlot, delta)), rdx);
  a.mov(rax, host::gs_indexed(tags, rax));
  a.mov(slot_field(offsetof(AccessSlot, first)), rax);
  a.add(r10, rdx);
  a.add(rdx, rax);
  a.mov(slot_field(offsetof(AccessSlot, host)), rdx);
  a.mov(rax, slot_field(offsetof(AccessSlot, length)));
  a.mov(slot_field(offsetof(AccessSlot, length)), rcx);
  a.test(rax, rax);
  a.jnz(in_journal);
  journal_slot(a);
  a.bind(in_journal);
  restore();
  a.ret();
  a.bind(crosses);
  a.test(r11d, MissInfo::kKnowsSplitPages);
  a.jz(miss);
  a.mov(rax, r10);
  a.shr(rax, 12);
  a.cmp(eax, access_field(offsetof(AccessSlots, notes) + offsetof(SlotNotes, split), rdx, 3, 4));
  a.jne(miss);
  restore();
  a.mov(r10d, kSplitPages);
  a.ret();
  a.bind(miss);
  restore();
  a.jmp(asmjit::Imm(reinterpret_cast<u64>(tlb_miss)));
}

void call_cpp(Assembler& a, void* function) {
  a.mov(rdi, ANYKVM_GS(self));
  a.mov(rsi, r10);
  a.mov(rdx, r11);
  a.sub(rsp, 8);
  a.call(asmjit::Imm(reinterpret_cast<u64>(function)));
  a.add(rsp, 8);
}

// A thunk that calls `function(context, r10, r11)`, leaves when it returns 0, and otherwise puts its result
// into R10.
void make_call(Assembler& a, void* function) {
  asmjit::Label leave = a.newLabel();
  save_caller_saved(a);
  save_callee_saved(a);
  save_vector_if_live(a);
  call_cpp(a, function);
  a.mov(r10, rax);
  a.test(rax, rax);
  a.jz(leave);
  load_caller_saved(a);
  load_callee_saved(a);
  a.ret();
  a.bind(leave);
  leave_from_call(a);
}

// See kHelperLeaves.
void make_helper(Assembler& a, bool keeps_vector) {
  asmjit::Label leave = a.newLabel(), stay = a.newLabel();
  save_caller_saved(a);
  save_callee_saved(a);
  if (!keeps_vector) save_vector_if_live(a);
  call_cpp(a, reinterpret_cast<void*>(&anykvm_run_helper));
  a.cmp(rax, kHelperStays);
  a.jb(leave);
  a.je(stay);
  a.mov(r10, rax);
  a.add(rsp, 8);
  load_caller_saved(a);
  load_callee_saved(a);
  a.jmp(r10);
  a.bind(stay);
  load_caller_saved(a);
  load_callee_saved(a);
  a.ret();
  a.bind(leave);
  if (keeps_vector) save_vector_if_live(a);
  leave_from_call(a);
}

// Flags may be in the host's register.
void make_commit_crossing(Assembler& a) {
  const Mem flags = host::gs(offsetof(Context, string_spill), 2);
  a.mov(ANYKVM_GS(spill), rax);
  a.lahf();
  a.seto(al);
  a.mov(flags, ax);
  a.mov(rax, ANYKVM_GS(spill));
  save_caller_saved(a);
  a.mov(rdi, ANYKVM_GS(self));
  a.sub(rsp, 8);
  a.call(asmjit::Imm(reinterpret_cast<u64>(&anykvm_commit_crossing)));
  a.add(rsp, 8);
  a.movzx(eax, flags);
  a.add(al, 0x7f);
  a.sahf();
  load_caller_saved(a);
  a.ret();
}

void make_recover_flags(Assembler& a) {
  save_caller_saved(a);
  save_callee_saved(a);
  call_cpp(a, reinterpret_cast<void*>(&anykvm_recover_flags));
  load_caller_saved(a);
  load_callee_saved(a);
  a.ret();
}

void make_gather(Assembler& a, const u8* helper) {
  asmjit::Label not_done = a.newLabel();
  const Mem site = host::gs(offsetof(Context, string_spill));
  save_caller_saved(a);
  a.mov(site, r10);
  a.mov(rdi, ANYKVM_GS(self));
  a.mov(rsi, r11);
  a.sub(rsp, 8);
  a.call(asmjit::Imm(reinterpret_cast<u64>(&anykvm_gather)));
  a.add(rsp, 8);
  a.movzx(eax, al);
  a.mov(ANYKVM_GS(gather.done), rax);
  a.test(eax, eax);
  a.jz(not_done);
  load_caller_saved(a);
  a.ret();
  a.bind(not_done);
  load_caller_saved(a);
  a.mov(r10, site);
  a.jmp(asmjit::Imm(reinterpret_cast<u64>(helper)));
}

void make_load_vector(Assembler& a) {
  a.mov(host::gs(offsetof(Context, vector_spill)), rax);
  a.mov(host::gs(offsetof(Context, vector_spill) + 8), rdx);
  a.mov(eax, host::gs(offsetof(Context, xsave_mask), 4));
  a.mov(edx, host::gs(offsetof(Context, xsave_mask) + 4, 4));
  a.xrstor64(host::gs(offsetof(CpuState, xsave), 0));
  a.mov(ANYKVM_GS(vector_dead), 0);
  a.mov(rax, host::gs(offsetof(Context, vector_spill)));
  a.mov(rdx, host::gs(offsetof(Context, vector_spill) + 8));
  a.ret();
}

const u8* assemble(CodeMemory& memory, const std::function<void(Assembler&)>& body) {
  asmjit::CodeHolder code;
  code.init(asmjit::Environment::host(), reinterpret_cast<u64>(memory.next()));
  Assembler a(&code);
  body(a);
  code.flatten();
  code.resolveUnresolvedLinks();
  code.relocateToBase(reinterpret_cast<u64>(memory.next()));
  std::vector<u8> bytes(code.codeSize());
  code.copyFlattenedData(bytes.data(), bytes.size());
  return memory.put(bytes.data(), bytes.size());
}

extern "C" u64 slow_commit_from_thunk(Context* context, u64, const SlowSite* site) {
  return anykvm_slow_commit(context, site);
}

}  // namespace

Thunks make_thunks(CodeMemory& memory, const u8* records) {
  Thunks t;
  t.enter = reinterpret_cast<RecordRef (*)(Context*, const u8*)>(assemble(memory, make_enter));
  t.leave_flags_in_image = assemble(memory, make_leave_flags_in_image);
  for (bool user : {false, true})
    t.jump_miss[user] =
        assemble(memory, [&](Assembler& a) { make_jump_miss(a, user, t.leave_flags_in_image); });
  auto far_miss = [&](Assembler& a) { make_far_miss(a, t.jump_miss, t.leave_flags_in_image, records); };
  t.far_miss[1] = assemble(memory, far_miss);
  t.far_miss[0] = assemble(memory, [&](Assembler& a) {
    host::save_flags(a);
    far_miss(a);
  });
  t.leave_flags_in_host = assemble(memory, [](Assembler& a) {
    host::save_flags(a);
    make_leave_flags_in_image(a);
  });
  auto stale = [&](const u8* leave) {
    return assemble(memory, [leave](Assembler& a) {
      a.pop(r11);
      a.mov(ANYKVM_GS(leave_pc), r11);
      a.mov(r11d, kStaleBlock);
      a.jmp(asmjit::Imm(reinterpret_cast<u64>(leave)));
    });
  };
  t.stale_flags_in_host = stale(t.leave_flags_in_host);
  t.stale_flags_in_image = stale(t.leave_flags_in_image);
  t.leave_by_signal = assemble(memory, [](Assembler& a) {
    host::save_flags(a);
    save_caller_saved(a);
    save_callee_saved(a);
    save_vector_if_live(a);
    a.xor_(eax, eax);
    return_to_cpp(a);
  });
  t.tlb_miss = assemble(memory, make_tlb_miss);
  for (bool nested : {false, true}) {
    for (bool write : {false, true}) {
      t.slot_miss[nested][write] =
          assemble(memory, [&](Assembler& a) { make_slot_miss(a, nested, write, t.tlb_miss); });
    }
  }
  t.helper = assemble(memory, [](Assembler& a) { make_helper(a, false); });
  t.helper_keeping_vector = assemble(memory, [](Assembler& a) { make_helper(a, true); });
  for (unsigned shift = 0; shift < 4; ++shift) {
    t.move_string[shift] =
        assemble(memory, [&](Assembler& a) { make_string_thunk(a, true, shift, t.helper); });
    t.store_string[shift] =
        assemble(memory, [&](Assembler& a) { make_string_thunk(a, false, shift, t.helper); });
  }
  t.slow_access =
      assemble(memory, [](Assembler& a) { make_call(a, reinterpret_cast<void*>(&anykvm_slow_access)); });
  t.slow_commit =
      assemble(memory, [](Assembler& a) { make_call(a, reinterpret_cast<void*>(&slow_commit_from_thunk)); });
  t.gather = assemble(memory, [&](Assembler& a) { make_gather(a, t.helper); });
  t.commit_crossing = assemble(memory, make_commit_crossing);
  t.recover_flags = assemble(memory, make_recover_flags);
  t.load_vector = assemble(memory, make_load_vector);
  return t;
}

}  // namespace anykvm::x86
