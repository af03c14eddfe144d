// From one thread to another: interrupts from the client and from another vCPU, to a vCPU that runs or
// sleeps. What the host itself takes for waking a thread stands beside it.

#include <linux/futex.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "guest.h"

namespace anykvm::bench {
namespace {

namespace x86 = asmjit::x86;

constexpr unsigned kVector = 0x40, kGsi = 24, kEvents = 300;
enum Flag : unsigned { kHandled, kStop, kReady };  // of Guest::flag()
enum class Rest { kHalted, kBusy };

void spin_until(const std::function<bool()>& done) {
  while (!done()) __builtin_ia32_pause();
}

// Long enough for a vCPU that spins before it sleeps to have given up.
void let_it_sleep() {
  timespec a_while{0, 500'000};
  nanosleep(&a_while, nullptr);
}

// A vCPU on a thread of its own, halted or in a loop; its interrupt handler counts in flag(kHandled).
class Sleeper {
 public:
  Sleeper(Guest& guest, unsigned index, Rest rest) : m_guest(guest) {
    const std::uint64_t code = at::kCode + 0x10000 * (index + 1);
    guest.on_vector(kVector, [](Assembler& a) {
      a.push(x86::rax);
      a.push(x86::rcx);
      a.push(x86::rdx);
      a.inc(flag_operand(kHandled));
      end_of_interrupt(a);
      a.pop(x86::rdx);
      a.pop(x86::rcx);
      a.pop(x86::rax);
      a.iretq();
    });
    guest.assemble(code, [rest](Assembler& a) {
      asmjit::Label again = a.newLabel(), stop = a.newLabel();
      enable_x2apic(a);
      a.mov(flag_operand(kReady), 1);
      a.bind(again);
      a.cmp(flag_operand(kStop), 0);
      a.jne(stop);
      a.sti();
      if (rest == Rest::kHalted) a.hlt();
      a.pause();
      a.cli();
      a.jmp(again);
      a.bind(stop);
      exit_to_host(a);
    });
    guest.vcpu(index).start_at(code);
    m_thread = std::thread([&guest, index] { guest.vcpu(index).run_to_end(); });
    spin_until([&guest] { return guest.flag(kReady) != 0; });
  }
  ~Sleeper() {
    m_guest.flag(kStop) = 1;
    m_wake();
    m_thread.join();
  }
  void wake_at_end_by(std::function<void()> wake) { m_wake = std::move(wake); }

 private:
  Guest& m_guest;
  std::function<void()> m_wake = [] {};
  std::thread m_thread;
};

void route_gsi(Guest& guest) {
  struct {
    kvm_irq_routing routing{};
    kvm_irq_routing_entry entry{};
  } request;
  request.routing.nr = 1;
  request.entry.gsi = kGsi;
  request.entry.type = KVM_IRQ_ROUTING_MSI;
  request.entry.u.msi.address_lo = 0xfee00000;
  request.entry.u.msi.data = kVector;
  must_ioctl(guest.vm(), KVM_SET_GSI_ROUTING, &request);
}

// From the client's request to the first effect of the guest's handler.
void measure_delivery(benchmark::State& state, Guest& guest, Rest rest, const std::function<void()>& raise) {
  Sleeper sleeper(guest, 0, rest);
  sleeper.wake_at_end_by(raise);
  std::uint64_t before = 0;
  measure_events(
      state,
      [&] {
        if (rest == Rest::kHalted) let_it_sleep();
        before = guest.flag(kHandled);
      },
      [&] {
        raise();
        spin_until([&] { return guest.flag(kHandled) != before; });
      });
}

void irqfd(benchmark::State& state, Rest rest) {
  Guest guest;
  route_gsi(guest);
  int event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  kvm_irqfd request{};
  request.fd = static_cast<std::uint32_t>(event);
  request.gsi = kGsi;
  must_ioctl(guest.vm(), KVM_IRQFD, &request);
  measure_delivery(state, guest, rest, [event] { eventfd_write(event, 1); });
  close(event);
}
BENCHMARK_CAPTURE(irqfd, to_busy_vcpu, Rest::kBusy)->Iterations(kEvents)->UseManualTime();
BENCHMARK_CAPTURE(irqfd, to_halted_vcpu, Rest::kHalted)->Iterations(kEvents)->UseManualTime();

void signal_msi(benchmark::State& state, Rest rest) {
  Guest guest;
  measure_delivery(state, guest, rest, [&guest] {
    kvm_msi msi{};
    msi.address_lo = 0xfee00000;
    msi.data = kVector;
    must_ioctl(guest.vm(), KVM_SIGNAL_MSI, &msi);
  });
}
BENCHMARK_CAPTURE(signal_msi, to_busy_vcpu, Rest::kBusy)->Iterations(kEvents)->UseManualTime();
BENCHMARK_CAPTURE(signal_msi, to_halted_vcpu, Rest::kHalted)->Iterations(kEvents)->UseManualTime();

// What the same costs without us: a thread asleep on a futex.
void host_futex_wake(benchmark::State& state) {
  std::atomic<std::uint32_t> word{0}, seen{0};
  std::atomic<bool> stop{false};
  std::thread sleeper([&] {
    while (!stop) {
      std::uint32_t now = word;
      if (now == seen) syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, now, nullptr, nullptr, 0);
      seen = word.load();
    }
  });
  auto wake = [&] {
    ++word;
    syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
  };
  measure_events(state, let_it_sleep, [&] {
    wake();
    spin_until([&] { return seen == word; });
  });
  stop = true;
  wake();
  sleeper.join();
}
BENCHMARK(host_futex_wake)->Iterations(kEvents)->UseManualTime();

// vCPU 0 sends to vCPU 1 and waits until its handler has counted.
void ipi(benchmark::State& state, Rest rest) {
  Guest guest(2);
  Sleeper sleeper(guest, 1, rest);
  sleeper.wake_at_end_by([&guest] {
    kvm_msi msi{};
    msi.address_lo = 0xfee01000;
    msi.data = kVector;
    must_ioctl(guest.vm(), KVM_SIGNAL_MSI, &msi);
  });
  guest.assemble(at::kCode, [](Assembler& a) {
    asmjit::Label start = a.newLabel(), again = a.newLabel();
    enable_x2apic(a);
    a.bind(start);
    a.mov(x86::rbx, flag_operand(kHandled));
    write_msr(a, 0x830, 1ull << 32 | kVector);
    a.bind(again);
    a.pause();
    a.cmp(x86::rbx, flag_operand(kHandled));
    a.je(again);
    exit_to_host(a);
    a.jmp(start);
  });
  guest.vcpu().start_at(at::kCode);
  measure_events(
      state,
      [rest] {
        if (rest == Rest::kHalted) let_it_sleep();
      },
      [&] { guest.vcpu().run_to_end(); });
}
BENCHMARK_CAPTURE(ipi, to_busy_vcpu, Rest::kBusy)->Iterations(kEvents)->UseManualTime();
BENCHMARK_CAPTURE(ipi, to_halted_vcpu, Rest::kHalted)->Iterations(kEvents)->UseManualTime();

}  // namespace
}  // namespace anykvm::bench
