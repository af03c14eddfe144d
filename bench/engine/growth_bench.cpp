// Costs that could grow with a guest: with its memory slots, its RAM, its code, its address spaces.
// Near-linear is what we want to see: per_op should hardly depend on the argument.

#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "guest.h"

namespace anykvm::bench {
namespace {

namespace x86 = asmjit::x86;

constexpr std::uint64_t kMib = 1u << 20, kGib = 1u << 30, kSlotSize = 0x10000;

// Anonymous memory that takes nothing until it is touched.
class Reserved {
 public:
  explicit Reserved(std::uint64_t size) : m_size(size) {
    m_base = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  }
  ~Reserved() { munmap(m_base, m_size); }
  Reserved(const Reserved&) = delete;
  Reserved& operator=(const Reserved&) = delete;
  std::uint8_t* at(std::uint64_t offset) const { return static_cast<std::uint8_t*>(m_base) + offset; }

 private:
  std::uint64_t m_size;
  void* m_base;
};

double resident_mib() {
  unsigned long total = 0, resident = 0;
  FILE* file = fopen("/proc/self/statm", "r");
  if (!file || fscanf(file, "%lu %lu", &total, &resident) != 2) resident = 0;
  if (file) fclose(file);
  return static_cast<double>(resident) * static_cast<double>(sysconf(_SC_PAGESIZE)) / kMib;
}

// Slots above the guest's RAM with holes between them.
void add_slots(Guest& guest, const Reserved& memory, unsigned count) {
  for (unsigned i = 1; i <= count; ++i)
    guest.set_slot(i, 4 * kGib + 2 * i * kSlotSize, kSlotSize, memory.at(i * kSlotSize));
}

// One slot comes and goes while `slots` others are there.
void change_of_a_slot(benchmark::State& state) {
  auto slots = static_cast<unsigned>(state.range(0));
  Reserved memory((slots + 2) * kSlotSize);
  Guest guest;
  add_slots(guest, memory, slots);
  measure(state, 2, [&] {
    guest.set_slot(slots + 1, 2 * kGib, kSlotSize, memory.at(0));
    guest.set_slot(slots + 1, 2 * kGib, 0, nullptr);
  });
}
BENCHMARK(change_of_a_slot)->RangeMultiplier(10)->Range(1, 1000);

// An exit for memory that is in none of `slots` slots.
void exit_mmio_beside_slots(benchmark::State& state) {
  auto slots = static_cast<unsigned>(state.range(0));
  Reserved memory((slots + 2) * kSlotSize);
  Guest guest;
  add_slots(guest, memory, slots);
  guest.assemble(at::kCode, [](Assembler& a) {
    asmjit::Label again = a.newLabel();
    a.mov(x86::rsi, at::kNothing);
    a.bind(again);
    a.mov(x86::eax, x86::ptr(x86::rsi));
    a.jmp(again);
  });
  guest.vcpu().start_at(at::kCode);
  measure(state, 1, [&] { guest.vcpu().run(KVM_EXIT_MMIO); });
}
BENCHMARK(exit_mmio_beside_slots)->RangeMultiplier(10)->Range(1, 1000);

// Making a VM with so many GiB that nobody touches; what the process has in memory for it.
void virtual_machine_of_gib(benchmark::State& state) {
  auto size = static_cast<std::uint64_t>(state.range(0)) * kGib;
  Reserved memory(size);
  double before = resident_mib(), during = before;
  measure(state, 1, [&] {
    Guest guest;
    guest.set_slot(1, 4 * kGib, size, memory.at(0));
    guest.assemble(at::kCode, exit_to_host);
    guest.vcpu().start_at(at::kCode);
    guest.vcpu().run_to_end();
    during = resident_mib();
  });
  state.counters["MiB"] = during - before;
}
BENCHMARK(virtual_machine_of_gib)->RangeMultiplier(4)->Range(1, 64)->Unit(benchmark::kMillisecond);

// Code of so many KiB, run from its first block to its last again and again: per_op is for one instruction.
void code_of_kib(benchmark::State& state) {
  Guest guest;
  const std::uint64_t size = static_cast<std::uint64_t>(state.range(0)) * 1024, end = at::kScattered + size;
  fill_with_code(guest, at::kScattered, size, size);
  guest.assemble(at::kCode, [](Assembler& a) {
    asmjit::Label back = a.newLabel(), start = a.newLabel();
    a.mov(x86::esi, at::kData);
    a.lea(x86::rbp, x86::ptr(back));
    a.bind(start);
    a.jmp(at::kScattered);
    a.bind(back);
    exit_to_host(a);
    a.jmp(start);
  });
  guest.vcpu().start_at(at::kCode);
  measure(state, (end - at::kScattered) / kPatternSize * kPatternInstructions,
          [&] { guest.vcpu().run_to_end(); });
}
BENCHMARK(code_of_kib)->RangeMultiplier(8)->Range(64, 4096);

// The guest copies code of so many KiB to where other code was, and runs it once: per_op is for one
// instruction.
void code_loaded_kib(benchmark::State& state) {
  Guest guest;
  const std::uint64_t size = static_cast<std::uint64_t>(state.range(0)) * 1024;
  const std::uint64_t from = at::kScattered, to = from + at::kScatteredSize / 2;
  fill_with_code(guest, from, size, size);
  guest.assemble(at::kCode, [&](Assembler& a) {
    asmjit::Label back = a.newLabel(), start = a.newLabel();
    a.lea(x86::rbp, x86::ptr(back));
    a.bind(start);
    a.mov(x86::rsi, from);
    a.mov(x86::rdi, to);
    a.mov(x86::ecx, size);
    a.rep().movsb();
    a.mov(x86::esi, at::kData);
    a.jmp(to);
    a.bind(back);
    exit_to_host(a);
    a.jmp(start);
  });
  guest.vcpu().start_at(at::kCode);
  measure(state, size / kPatternSize * kPatternInstructions, [&] { guest.vcpu().run_to_end(); });
}
BENCHMARK(code_loaded_kib)->RangeMultiplier(4)->Range(4, 1024);

// Loads from so many pages, and then MOV to CR3: per_op is for one page, with its part of the flush.
void flush_after_pages(benchmark::State& state) {
  auto pages = static_cast<unsigned>(state.range(0));
  measure_loop(state, {.count = 16,
                       .unroll = 1,
                       .operations = pages,
                       .before = [](Assembler& a) { a.mov(x86::rbx, x86::cr3); },
                       .body =
                           [&](Assembler& a, unsigned) {
                             asmjit::Label next = a.newLabel();
                             a.mov(x86::rsi, at::kPages);
                             a.mov(x86::ecx, pages);
                             a.bind(next);
                             a.mov(x86::rax, x86::ptr(x86::rsi));
                             a.add(x86::rsi, 4096);
                             a.dec(x86::ecx);
                             a.jnz(next);
                             a.mov(x86::cr3, x86::rbx);
                           }});
}
BENCHMARK(flush_after_pages)->RangeMultiplier(8)->Range(16, 8192);

constexpr std::uint64_t kRoots = at::kData + kMib;
constexpr unsigned kLoads = 16;

// MOV to CR3 by turns between so many address spaces, and sixteen loads after each: per_op is for one turn.
void address_spaces(benchmark::State& state) {
  auto count = static_cast<unsigned>(state.range(0));
  Guest guest;
  for (unsigned i = 0; i < count; ++i) guest.copy_root(kRoots + i * 4096);
  measure_loop(state, guest,
               {.count = 1000,
                .unroll = 1,
                .before = [](Assembler& a) { a.mov(x86::ebx, kRoots); },
                .body =
                    [&](Assembler& a, unsigned) {
                      a.mov(x86::cr3, x86::rbx);
                      a.mov(x86::rsi, at::kPages);
                      for (unsigned i = 0; i < kLoads; ++i)
                        a.mov(x86::rax, x86::ptr(x86::rsi, static_cast<int>(i * 4096)));
                      a.add(x86::ebx, 4096);
                      a.mov(x86::eax, kRoots);
                      a.cmp(x86::ebx, static_cast<unsigned>(kRoots + count * 4096));
                      a.cmovae(x86::ebx, x86::eax);
                    }});
}
BENCHMARK(address_spaces)->RangeMultiplier(10)->Range(1, 1000);

}  // namespace
}  // namespace anykvm::bench
