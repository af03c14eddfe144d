// Translated code itself: making it, going from block to block, reaching memory.

#include <numeric>
#include <random>

#include "guest.h"

namespace anykvm::bench {
namespace {

namespace x86 = asmjit::x86;

// Half of the scattered RAM, a piece for each run.
constexpr std::uint64_t kPiece = 0x10000, kCodeSize = at::kScatteredSize / 2;

void translation(benchmark::State& state) {
  Guest guest;
  fill_with_code(guest, at::kScattered, kCodeSize, kPiece);
  guest.assemble(at::kCode, [](Assembler& a) {
    asmjit::Label back = a.newLabel(), start = a.newLabel();
    a.mov(x86::esi, at::kData);
    a.lea(x86::rbp, x86::ptr(back));
    a.bind(start);
    a.jmp(flag_operand(0));
    a.bind(back);
    exit_to_host(a);
    a.jmp(start);
  });
  guest.vcpu().start_at(at::kCode);
  std::uint64_t next = at::kScattered;
  measure(
      state, kPiece / kPatternSize * kPatternInstructions, [&] { guest.vcpu().run_to_end(); },
      [&] {
        if (next == at::kScattered + kCodeSize) {
          guest.replace_ram();
          next = at::kScattered;
        }
        guest.flag(0) = next;
        next += kPiece;
      });
}
BENCHMARK(translation);

void instruction(benchmark::State& state) {
  measure_loop(state, {.body = [](Assembler& a, unsigned) { a.add(x86::rax, x86::rbx); }});
}
BENCHMARK(instruction);

// Direct jumps from each block to one that lies elsewhere.
void block_link(benchmark::State& state) {
  constexpr unsigned kBlocks = 64;
  std::vector<unsigned> order(kBlocks);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin() + 1, order.end(), std::mt19937(2));
  measure_loop(state, {.unroll = 1, .operations = kBlocks, .body = [&](Assembler& a, unsigned) {
                         std::vector<asmjit::Label> labels;
                         for (unsigned i = 0; i <= kBlocks; ++i) labels.push_back(a.newLabel());
                         std::vector<unsigned> after(kBlocks, kBlocks);
                         for (unsigned i = 0; i + 1 < kBlocks; ++i) after[order[i]] = order[i + 1];
                         for (unsigned i = 0; i < kBlocks; ++i) {
                           a.bind(labels[i]);
                           a.jmp(labels[after[i]]);
                         }
                         a.bind(labels[kBlocks]);
                       }});
}
BENCHMARK(block_link);

// JMP through a register, each to a place of its own.
void indirect_jump(benchmark::State& state) {
  measure_loop(state, {.body = [](Assembler& a, unsigned) {
                 asmjit::Label next = a.newLabel();
                 a.lea(x86::rax, x86::ptr(next));
                 a.jmp(x86::rax);
                 a.bind(next);
               }});
}
BENCHMARK(indirect_jump);

void call_and_ret(benchmark::State& state) {
  Guest guest;
  guest.assemble(at::kHandlers, [](Assembler& a) { a.ret(); });
  measure_loop(state, guest, {.body = [](Assembler& a, unsigned) { a.call(at::kHandlers); }});
}
BENCHMARK(call_and_ret);

// Loads that find their page at once: sixteen of them, on one page or on as many.
void load_same_page(benchmark::State& state) {
  measure_loop(state,
               {.before = [](Assembler& a) { a.mov(x86::esi, at::kData); },
                .body = [](Assembler& a, unsigned i) { a.mov(x86::rax, x86::ptr(x86::rsi, int(i * 64))); }});
}
BENCHMARK(load_same_page);

void load_sixteen_pages(benchmark::State& state) {
  measure_loop(state, {.before = [](Assembler& a) { a.mov(x86::rsi, at::kPages); },
                       .body = [](Assembler& a,
                                  unsigned i) { a.mov(x86::rax, x86::ptr(x86::rsi, int(i * 4096 + 64))); }});
}
BENCHMARK(load_sixteen_pages);

// One load instruction that walks over more pages than any TLB holds.
void walk_pages(benchmark::State& state, std::uint64_t first, std::uint64_t bytes) {
  measure_loop(state, {.count = static_cast<unsigned>(bytes / 4096),
                       .unroll = 1,
                       .before = [&](Assembler& a) { a.mov(x86::rsi, first); },
                       .body =
                           [&](Assembler& a, unsigned) {
                             a.mov(x86::rax, x86::ptr(x86::rsi));
                             a.add(x86::rsi, 4096);
                             a.mov(x86::rax, first + bytes);
                             a.cmp(x86::rsi, x86::rax);
                             a.mov(x86::rax, first);
                             a.cmove(x86::rsi, x86::rax);
                           }});
}
// 256 pages fit, 16384 pages do not.
void load_next_page_of_256(benchmark::State& state) { walk_pages(state, at::kPages, 256 * 4096); }
BENCHMARK(load_next_page_of_256);
void tlb_miss_4k_pages(benchmark::State& state) { walk_pages(state, at::kPages, at::kScatteredSize); }
BENCHMARK(tlb_miss_4k_pages);
void tlb_miss_2m_pages(benchmark::State& state) { walk_pages(state, at::kScattered, at::kScatteredSize); }
BENCHMARK(tlb_miss_2m_pages);

// A load that finds its page again only by a walk.
void invlpg_and_load(benchmark::State& state) {
  measure_loop(state, {.before = [](Assembler& a) { a.mov(x86::rsi, at::kPages); },
                       .body =
                           [](Assembler& a, unsigned) {
                             a.invlpg(x86::ptr(x86::rsi));
                             a.mov(x86::rax, x86::ptr(x86::rsi));
                           }});
}
BENCHMARK(invlpg_and_load);

void cr3_write(benchmark::State& state) {
  measure_loop(state, {.count = 100,
                       .before = [](Assembler& a) { a.mov(x86::rbx, x86::cr3); },
                       .body = [](Assembler& a, unsigned) { a.mov(x86::cr3, x86::rbx); }});
}
BENCHMARK(cr3_write);

// Code that changes an immediate of the code that it calls.
constexpr std::uint64_t kRewritten = at::kCode + 0x10000;

void rewrite_code(benchmark::State& state) {
  Guest guest;
  guest.assemble(kRewritten, [](Assembler& a) {
    a.mov(x86::eax, 0x11111111);
    a.ret();
  });
  measure_loop(state, guest, {.count = 100, .unroll = 1, .body = [](Assembler& a, unsigned) {
                                a.mov(x86::dword_ptr(kRewritten + 1), x86::r12d);
                                a.call(kRewritten);
                              }});
}
BENCHMARK(rewrite_code);

}  // namespace
}  // namespace anykvm::bench
