// What the engine handles itself, without an exit to the client: exceptions, interrupts, CPUID, MSRs, its own
// devices.

#include "guest.h"

namespace anykvm::bench {
namespace {

namespace x86 = asmjit::x86;

constexpr unsigned kVector = 0x40;
constexpr std::uint64_t kUnmapped = 0x80000000;  // linear, not present
constexpr std::uint64_t kSystemCall = at::kHandlers;

void exception(benchmark::State& state) {
  Guest guest;
  guest.on_vector(6, [](Assembler& a) {
    a.add(x86::qword_ptr(x86::rsp), 2);  // past UD2
    a.iretq();
  });
  measure_loop(state, guest, {.count = 100, .body = [](Assembler& a, unsigned) { a.ud2(); }});
}
BENCHMARK(exception);

void page_fault(benchmark::State& state) {
  Guest guest;
  guest.on_vector(14, [](Assembler& a) {
    a.add(x86::rsp, 8);                  // the error code
    a.add(x86::qword_ptr(x86::rsp), 3);  // past the load
    a.iretq();
  });
  measure_loop(state, guest,
               {.count = 100,
                .before = [](Assembler& a) { a.mov(x86::rsi, kUnmapped); },
                .body = [](Assembler& a, unsigned) { a.mov(x86::rax, x86::ptr(x86::rsi)); }});
}
BENCHMARK(page_fault);

void software_interrupt(benchmark::State& state) {
  Guest guest;
  guest.on_vector(kVector, [](Assembler& a) { a.iretq(); });
  measure_loop(state, guest, {.count = 100, .body = [](Assembler& a, unsigned) { a.int_(kVector); }});
}
BENCHMARK(software_interrupt);

// An IPI to itself: the write to the ICR, the delivery, EOI and IRETQ.
void interrupt(benchmark::State& state) {
  Guest guest;
  guest.on_vector(kVector, [](Assembler& a) {
    end_of_interrupt(a);
    a.iretq();
  });
  measure_loop(state, guest,
               {.count = 100,
                .before =
                    [](Assembler& a) {
                      enable_x2apic(a);
                      a.sti();
                    },
                .body = [](Assembler& a, unsigned) { write_msr(a, 0x83f, kVector); }});
}
BENCHMARK(interrupt);

void system_call(benchmark::State& state) {
  Guest guest;
  guest.assemble(kSystemCall, [](Assembler& a) {
    a.push(x86::rcx);  // SYSRET would go to ring 3, whose selectors this guest does not have
    a.mov(x86::rcx, x86::ptr(x86::rsp));
    a.add(x86::rsp, 8);
    a.jmp(x86::rcx);
  });
  measure_loop(state, guest,
               {.count = 100,
                .before =
                    [](Assembler& a) {
                      write_msr(a, 0xc0000080, 0x501);  // EFER.SCE
                      write_msr(a, 0xc0000081, 8ull << 32);
                      write_msr(a, 0xc0000082, kSystemCall);
                    },
                .body = [](Assembler& a, unsigned) { a.syscall(); }});
}
BENCHMARK(system_call);

void cpuid(benchmark::State& state) {
  measure_loop(state, {.count = 100, .body = [](Assembler& a, unsigned) {
                         a.mov(x86::eax, 1);
                         a.cpuid();
                       }});
}
BENCHMARK(cpuid);

void rdmsr(benchmark::State& state) {
  measure_loop(state, {.count = 100,
                       .before = [](Assembler& a) { a.mov(x86::ecx, 0xc0000102); },  // KERNEL_GS_BASE
                       .body = [](Assembler& a, unsigned) { a.rdmsr(); }});
}
BENCHMARK(rdmsr);

void wrmsr(benchmark::State& state) {
  measure_loop(state, {.count = 100,
                       .before =
                           [](Assembler& a) {
                             a.mov(x86::ecx, 0xc0000102);
                             a.mov(x86::eax, 0x1000);
                             a.xor_(x86::edx, x86::edx);
                           },
                       .body = [](Assembler& a, unsigned) { a.wrmsr(); }});
}
BENCHMARK(wrmsr);

void rdtsc(benchmark::State& state) {
  measure_loop(state, {.count = 100, .body = [](Assembler& a, unsigned) { a.rdtsc(); }});
}
BENCHMARK(rdtsc);

void arm_tsc_deadline(benchmark::State& state) {
  measure_loop(state, {.count = 100,
                       .before =
                           [](Assembler& a) {
                             enable_x2apic(a);
                             write_msr(a, 0x832, 0x40000 | kVector);
                           },
                       .body =
                           [](Assembler& a, unsigned) {
                             a.rdtsc();
                             a.add(x86::edx, 4);  // seconds away
                             a.mov(x86::ecx, 0x6e0);
                             a.wrmsr();
                           }});
}
BENCHMARK(arm_tsc_deadline);

void pio_pic(benchmark::State& state) {
  measure_loop(state, {.count = 100, .body = [](Assembler& a, unsigned) { a.in(x86::al, 0x21); }});
}
BENCHMARK(pio_pic);

void mmio_load(benchmark::State& state, ApicMode apic, std::uint64_t address) {
  Guest guest(1, apic);
  measure_loop(state, guest,
               {.count = 100,
                .before = [&](Assembler& a) { a.mov(x86::rsi, address); },
                .body = [](Assembler& a, unsigned) { a.mov(x86::eax, x86::ptr(x86::rsi)); }});
}
void mmio_lapic(benchmark::State& state) { mmio_load(state, ApicMode::kXapic, at::kLapic + 0x80); }
BENCHMARK(mmio_lapic);
void mmio_ioapic(benchmark::State& state) { mmio_load(state, ApicMode::kX2apic, at::kIoapic); }
BENCHMARK(mmio_ioapic);

}  // namespace
}  // namespace anykvm::bench
