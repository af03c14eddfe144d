#include "x86/translate/string_thunks.h"

#include <array>

#include "base/guarded_memory.h"
#include "x86/ops/string_common.h"

namespace anykvm::x86 {
namespace {

using namespace asmjit::x86;  // register names

class StringThunk {
 public:
  StringThunk(Assembler& a, bool moves, unsigned shift) : a(a), m_moves(moves), m_shift(shift) {}

  void make(const u8* helper) {
    asmjit::Label next = a.newLabel(), done = a.newLabel();
    for (unsigned i = 0; i < kTemporaries.size(); ++i) a.mov(spill(i), kTemporaries[i]);
    a.test(host::gs(offsetof(CpuState, rflags) + 1, 1), kFlagDf >> 8);
    a.jnz(m_slow);
    a.cmp(rcx, static_cast<i32>(kStringBurstBytes >> m_shift));
    a.ja(m_slow);
    a.bind(next);
    a.test(rcx, rcx);
    a.jz(done);
    a.mov(ebx, kPageSize);
    if (m_moves) find(rsi, r10, offsetof(TlbTable, read_tag));
    find(rdi, rdx, offsetof(TlbTable, write_tag));
    // Elements that lie in these pages, and are wanted.
    if (m_shift) a.shr(ebx, m_shift);
    a.jz(m_slow);
    a.cmp(rbx, rcx);
    a.cmova(rbx, rcx);
    do_elements();
    a.jmp(next);
    a.bind(done);
    restore();
    a.ret();
    a.bind(m_slow);
    restore();
    a.jmp(asmjit::Imm(reinterpret_cast<u64>(helper)));
  }

 private:
  static constexpr u32 kIndexMask = kTlbEntries - 1;
  inline static const std::array kTemporaries = {rax, rbx, rdx, r10};
  inline static const std::array kPointers = {rcx, rsi, rdi};

  static Mem spill(unsigned i) { return host::gs(offsetof(Context, string_spill) + 8 * i); }
  static Mem pointer_spill(unsigned i) { return spill(kTemporaries.size() + i); }
  // gs:[R11 + RAX * 8 + field]
  static Mem entry(std::size_t field) {
    Mem memory = ptr(r11, rax, 3, static_cast<i32>(field), 8);
    memory.setSegment(gs);
    return memory;
  }

  void restore() {
    for (unsigned i = 0; i < kTemporaries.size(); ++i) a.mov(kTemporaries[i], spill(i));
  }

  // `host` = where the byte at `linear` is, if the TLB has its page; EBX = at most how many bytes there are
  // up to the page's end. Clobbers RAX.
  void find(const Gp& linear, const Gp& host, std::size_t tag) {
    a.mov(eax, linear.r32());
    a.shr(eax, 12);
    a.and_(eax, kIndexMask);
    a.mov(host, linear);
    a.sub(host, entry(tag));
    a.cmp(host, kPageSize - 1);
    a.ja(m_slow);
    a.neg(host);
    a.add(host, kPageSize);
    a.cmp(ebx, host.r32());
    a.cmova(ebx, host.r32());
    a.neg(host);
    a.add(host, kPageSize);
    a.add(host, entry(offsetof(TlbTable, host)));
  }

  // RBX elements at the host addresses RDX and, of MOVS, R10. The guest's memory may go away under it; then
  // the function finds that out again.
  void do_elements() {
    for (unsigned i = 0; i < kPointers.size(); ++i) a.mov(pointer_spill(i), kPointers[i]);
    if (!m_moves) a.mov(r10, spill(0));  // RAX
    a.mov(rdi, rdx);
    a.mov(rsi, r10);
    a.mov(rdx, rbx);
    a.mov(ecx, 1u << m_shift);
    a.mov(pointer_spill(kPointers.size()), r8);
    const u64 function =
        m_moves ? reinterpret_cast<u64>(&anykvm_guarded_movs) : reinterpret_cast<u64>(&anykvm_guarded_stos);
    a.call(asmjit::Imm(function));
    a.mov(r8, pointer_spill(kPointers.size()));
    for (unsigned i = 0; i < kPointers.size(); ++i) a.mov(kPointers[i], pointer_spill(i));
    a.test(al, al);
    a.jz(m_slow);
    a.sub(rcx, rbx);
    if (m_shift) a.shl(rbx, m_shift);
    if (m_moves) a.add(rsi, rbx);
    a.add(rdi, rbx);
  }

  Assembler& a;
  const bool m_moves;
  const unsigned m_shift;
  asmjit::Label m_slow = a.newLabel();
};

}  // namespace

void make_string_thunk(Assembler& a, bool moves, unsigned shift, const u8* helper) {
  StringThunk(a, moves, shift).make(helper);
}

}  // namespace anykvm::x86
