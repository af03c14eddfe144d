// Jumps, calls, returns and loops: small programs, natively and translated.
#include <asmjit/x86.h>
#include <gtest/gtest.h>

#include <functional>

#include "differential.h"

namespace anykvm::isa {
namespace {

using namespace asmjit::x86;  // register names
using Body = std::function<void(Assembler&)>;

std::vector<u8> assemble(u64 rip, unsigned code_bits, const Body& body) {
  asmjit::CodeHolder code;
  code.init(asmjit::Environment(code_bits == 64 ? asmjit::Arch::kX64 : asmjit::Arch::kX86), rip);
  Assembler a(&code);
  body(a);
  code.flatten();
  code.resolveUnresolvedLinks();
  code.relocateToBase(rip);
  std::vector<u8> bytes(code.codeSize());
  code.copyFlattenedData(bytes.data(), bytes.size());
  return bytes;
}

class Control : public testing::Test {
 protected:
  // Runs `body` from random states, which `prepare` may change.
  void agree(const Body& body, u64 seed, const std::function<void(Random&, UserState&)>& prepare = {},
             unsigned code_bits = 64, u64 states = 60) {
    for (u64 i = 0; i < states; ++i) {
      Case test;
      test.seed = seed_or(seed) + i;
      test.code_bits = code_bits;
      Random random(test.seed);
      test.start = random_state(random, code_bits);
      test.start.gpr[4] = kDataBase + 0x1000 + 8 * random.below(64);
      random_memory(random, &test.memory);
      test.start.rip = differential.place();
      test.bytes = assemble(test.start.rip, code_bits, body);
      if (prepare) prepare(random, test.start);
      std::string report = differential.check(test);
      ASSERT_TRUE(report.empty()) << report;
    }
  }

  Differential differential;
};

using Condition = asmjit::x86::CondCode;

// Every condition, taken or not by random flags, forwards.
void conditions(Assembler& a) {
  static constexpr Condition kAll[] = {Condition::kO, Condition::kNO, Condition::kB,  Condition::kAE,
                                       Condition::kE, Condition::kNE, Condition::kBE, Condition::kA,
                                       Condition::kS, Condition::kNS, Condition::kP,  Condition::kNP,
                                       Condition::kL, Condition::kGE, Condition::kLE, Condition::kG};
  for (Condition condition : kAll) {
    asmjit::Label over = a.newLabel();
    a.lea(eax, ptr(eax, 1));
    a.j(condition, over);
    a.lea(ebx, ptr(ebx, eax, 1));
    a.bind(over);
  }
}

TEST_F(Control, every_condition_jumps_or_not) { agree(conditions, 1); }

TEST_F(Control, counted_loop_with_memory_and_carry) {
  agree(
      [](Assembler& a) {
        asmjit::Label again = a.newLabel();
        a.bind(again);
        a.adc(ptr(rsi, rcx, 3, 0, 8), rax);
        a.lea(rcx, ptr(rcx, -1));
        a.inc(rdx);
        a.jecxz(rcx, again);
        a.jnz(again);
      },
      2,
      [](Random& random, UserState& s) {
        s.gpr[1] = random.below(20);
        s.gpr[2] = ~u64{0} - random.below(20);
        s.gpr[6] = kDataBase + 0x300;
      });
}

TEST_F(Control, loop_instructions) {
  agree(
      [](Assembler& a) {
        asmjit::Label first = a.newLabel(), second = a.newLabel(), third = a.newLabel();
        a.bind(first);
        a.add(rax, rcx);
        a.loop(first);
        a.mov(ecx, 9);
        a.bind(second);
        a.sub(rbx, rcx);
        a.test(bl, 6);
        a.loopne(second);
        a.mov(ecx, 7);
        a.bind(third);
        a.cmp(ecx, ecx);
        a.loope(third);
      },
      3, [](Random& random, UserState& s) { s.gpr[1] = 1 + random.below(30); });
}

TEST_F(Control, calls_and_returns_nest) {
  agree(
      [](Assembler& a) {
        asmjit::Label outer = a.newLabel(), inner = a.newLabel(), taker = a.newLabel(), end = a.newLabel();
        a.call(outer);
        a.call(inner);
        a.jmp(end);
        a.bind(outer);
        a.push(rbx);
        a.call(inner);
        a.call(inner);
        a.pop(rbx);
        a.ret();
        a.bind(inner);
        a.push(rax);
        a.push(rdx);
        a.call(taker);
        a.pop(rax);
        a.ret();
        a.bind(taker);
        a.add(rax, r10);
        a.ret(8);
        a.bind(end);
      },
      4);
}

TEST_F(Control, recursion_through_one_return_site) {
  agree(
      [](Assembler& a) {
        asmjit::Label self = a.newLabel(), leaf = a.newLabel(), end = a.newLabel();
        a.mov(ecx, 12);
        a.call(self);
        a.jmp(end);
        a.bind(self);
        a.sub(ecx, 1);
        a.js(leaf);
        a.call(self);
        a.adc(rax, rcx);
        a.bind(leaf);
        a.add(rdx, 3);
        a.ret();
        a.bind(end);
      },
      5);
}

class ControlByRegister : public Control, public testing::WithParamInterface<unsigned> {};

// Jump and call through each register, and through memory addressed by it.
TEST_P(ControlByRegister, indirect_jumps_and_calls) {
  Gp target = gpq(GetParam());
  bool is_rsp = GetParam() == 4;
  agree(
      [&](Assembler& a) {
        asmjit::Label over = a.newLabel(), function = a.newLabel(), end = a.newLabel(),
                      through = a.newLabel();
        a.lea(target, ptr(over));
        a.jmp(target);
        a.int3();
        a.bind(over);
        if (is_rsp) a.mov(target, kDataBase + 0x800);
        if (!is_rsp) {
          a.lea(target, ptr(function));
          a.call(target);
          a.lea(target, ptr(through));
          a.push(target);
          a.mov(target, rsp);
          a.jmp(ptr(target, 0, 8));
        }
        a.int3();
        a.bind(function);
        a.lea(target, ptr(target, 5));
        a.ret();
        a.bind(through);
        a.nop();
        a.bind(end);
      },
      100 + GetParam());
}

INSTANTIATE_TEST_SUITE_P(Isa, ControlByRegister, testing::Range(0u, 16u));

TEST_F(Control, return_to_an_unmapped_page_faults_there) {
  agree(
      [](Assembler& a) {
        a.push(rax);
        a.ret();
      },
      7, [](Random&, UserState& s) { s.gpr[0] = kDataEnd + 0x123; });
}

TEST_F(Control, interrupts_by_instruction) {
  agree(
      [](Assembler& a) {
        a.inc(eax);
        a.int3();
      },
      8);
  agree(
      [](Assembler& a) {
        a.inc(eax);
        a.ud2();
      },
      9);
}

TEST_F(Control, compatibility_mode_calls_and_loops) {
  agree(
      [](Assembler& a) {
        asmjit::Label function = a.newLabel(), again = a.newLabel(), end = a.newLabel();
        a.mov(ecx, 5);
        a.bind(again);
        a.call(function);
        a.loop(again);
        a.jmp(end);
        a.bind(function);
        a.inc(eax);
        a.dec(edi);
        a.push(esi);
        a.pop(edx);
        a.ret();
        a.bind(end);
      },
      10, {}, 32);
}

// POPF sets TF, so the trap comes right behind the jump, taken or not.
Body single_step(std::function<void(Assembler&, asmjit::Label)> jump) {
  return [jump](Assembler& a) {
    asmjit::Label back = a.newLabel(), on = a.newLabel();
    a.jmp(on);
    a.bind(back);
    a.inc(eax);
    a.ud2();
    a.bind(on);
    a.pushfq();
    a.or_(dword_ptr(rsp), 0x100);
    a.popfq();
    jump(a, back);
  };
}

TEST_F(Control, single_steps_stop_behind_jumps_back) {
  agree(single_step([](Assembler& a, asmjit::Label back) { a.jmp(back); }), 11);
  agree(single_step([](Assembler& a, asmjit::Label back) { a.jnz(back); }), 12);
  agree(single_step([](Assembler& a, asmjit::Label back) { a.loop(back); }), 13);
  agree(single_step([](Assembler& a, asmjit::Label back) { a.jecxz(back); }), 14);
}

// --- Random loops: registers of every kind, accesses off one base, ways out in the middle ---

class LoopMaker {
 public:
  LoopMaker(Assembler& a, u64 seed) : a(a), m_random(seed) {
    // Few registers in some loops, nearly all in others.
    static constexpr u8 kAll[] = {0, 2, 3, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const u64 share = 1 + m_random.below(4);
    for (u8 number : kAll) {
      if (m_random.below(4) < share) m_registers.push_back(number);
    }
    if (m_registers.empty()) m_registers = {10, 11, 15};
  }

  void make() {
    const asmjit::Label again = a.newLabel();
    a.mov(ecx, static_cast<u32>(1 + m_random.below(9)));
    a.bind(again);
    for (u64 left = 1 + m_random.below(14); left; --left) instruction();
    if (m_random.below(2)) {
      a.dec(ecx);
    } else {
      a.sub(ecx, 1);
    }
    a.jnz(again);
    a.bind(m_out);
    a.adc(rax, rdx);
  }

 private:
  Gp any() { return gpq(m_registers[m_random.below(m_registers.size())]); }
  Mem cell() { return ptr(rsi, static_cast<i32>(8 * m_random.below(24)) - 64, 8); }

  void instruction() {
    const Gp to = any(), from = any();
    switch (m_random.below(20)) {
      case 0:
        return void(a.add(to, from));
      case 1:
        return void(a.adc(to, from));
      case 2:
        return void(a.mov(to, from));
      case 3:
        return void(a.mov(to.r32(), from.r32()));
      case 4:
        return void(a.lea(to, ptr(from, any(), 2, 77)));
      case 5:
        return void(a.movzx(to.r32(), from.r16()));
      case 6:
        return void(a.mov(to.r16(), from.r16()));
      case 7:
        return void(a.imul(to, from));
      case 8:
        return void(a.rol(to.r32(), 7));
      case 9:
        return void(a.bsf(to, from));
      case 10:
        return void(a.cmovc(to.r32(), from.r32()));
      case 11:
        return void(a.mov(to, cell()));
      case 12:
        return void(a.add(to.r32(), cell()));
      case 13:
        return void(a.mov(cell(), from));
      case 14:
        return void(a.adc(cell(), from));
      case 15:
        return void(a.add(rsi, m_random.below(2) ? 8 : -8));
      case 16:
        a.cmp(to.r8(), from.r8());
        return void(a.j(m_random.below(2) ? Condition::kE : Condition::kLE, m_out));
      case 17:
        a.push(from);
        a.push(to);
        return void(a.pop(from));
      case 18:
        return void(a.movq(xmm1, from));
      default:
        return void(a.xchg(to, from));
    }
  }

  Assembler& a;
  Random m_random;
  std::vector<u8> m_registers;
  asmjit::Label m_out = a.newLabel();
};

TEST_F(Control, random_loops) {
  const u64 first = seed_or(31000);
  for (u64 seed = first; seed < first + scaled(400); ++seed) {
    agree([seed](Assembler& a) { LoopMaker(a, seed).make(); }, seed,
          [](Random&, UserState& state) { state.gpr[6] = kDataBase + 0x1800; }, 64, 3);
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace anykvm::isa
