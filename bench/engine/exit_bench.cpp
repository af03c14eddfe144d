// What crosses the API: exits of KVM_RUN, and requests of the client.

#include <stdlib.h>

#include "anykvm/anykvm.h"
#include "guest.h"

namespace anykvm::bench {
namespace {

namespace x86 = asmjit::x86;

// KVM_RUN, an exit, and back: the loop around it is the client's.
void measure_exits(benchmark::State& state, unsigned reason,
                   const std::function<void(Assembler&)>& instruction, RamKind ram = RamKind::kPrivate) {
  Guest guest(1, ApicMode::kX2apic, ram);
  guest.assemble(at::kCode, [&](Assembler& a) {
    a.mov(x86::rsi, at::kNothing);
    asmjit::Label again = a.newLabel();
    a.bind(again);
    instruction(a);
    a.jmp(again);
  });
  guest.vcpu().start_at(at::kCode);
  measure(state, 1, [&] { guest.vcpu().run(reason); });
}

void exit_pio_write(benchmark::State& state) {
  measure_exits(state, KVM_EXIT_IO, [](Assembler& a) { a.out(kUnusedPort, x86::al); });
}
BENCHMARK(exit_pio_write);

// Shared memory can change by other mappings of it, so it is looked at each time.
void exit_pio_write_shared_ram(benchmark::State& state) {
  measure_exits(
      state, KVM_EXIT_IO, [](Assembler& a) { a.out(kUnusedPort, x86::al); }, RamKind::kShared);
}
BENCHMARK(exit_pio_write_shared_ram);

void exit_pio_read(benchmark::State& state) {
  measure_exits(state, KVM_EXIT_IO, [](Assembler& a) { a.in(x86::al, kUnusedPort); });
}
BENCHMARK(exit_pio_read);

void exit_mmio_write(benchmark::State& state) {
  measure_exits(state, KVM_EXIT_MMIO, [](Assembler& a) { a.mov(x86::ptr(x86::rsi), x86::eax); });
}
BENCHMARK(exit_mmio_write);

void exit_mmio_read(benchmark::State& state) {
  measure_exits(state, KVM_EXIT_MMIO, [](Assembler& a) { a.mov(x86::eax, x86::ptr(x86::rsi)); });
}
BENCHMARK(exit_mmio_read);

void immediate_exit(benchmark::State& state) {
  Guest guest;
  guest.vcpu().shared()->immediate_exit = 1;
  measure(state, 1, [&] {
    if (anykvm_ioctl(guest.vcpu().fd(), KVM_RUN, 0) == 0) abort();
  });
}
BENCHMARK(immediate_exit);

void get_registers(benchmark::State& state) {
  Guest guest;
  kvm_regs regs;
  measure(state, 1, [&] { must_ioctl(guest.vcpu().fd(), KVM_GET_REGS, &regs); });
}
BENCHMARK(get_registers);

void get_special_registers(benchmark::State& state) {
  Guest guest;
  kvm_sregs sregs;
  measure(state, 1, [&] { must_ioctl(guest.vcpu().fd(), KVM_GET_SREGS, &sregs); });
}
BENCHMARK(get_special_registers);

// A VM with a vCPU and 128 MiB, made and closed.
void virtual_machine(benchmark::State& state) {
  measure(state, 1, [] { Guest guest; });
}
BENCHMARK(virtual_machine);

}  // namespace
}  // namespace anykvm::bench
