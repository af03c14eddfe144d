// KVM_RUN: exits, their completion, signals, halting. Guest code is real-mode machine code.
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "kvm.h"

namespace anykvm::test {
namespace {

unsigned exit_of(const Guest& guest) { return guest.shared->exit_reason; }

// Runs something on another thread a little later, in the middle of what this thread then does.
class Later {
 public:
  template <class Action>
  explicit Later(Action action)
      : m_thread([action] {
          usleep(20'000);
          action();
        }) {}
  ~Later() { m_thread.join(); }

 private:
  std::thread m_thread;
};

std::atomic<int> g_signals{0};
void count_signal(int) { ++g_signals; }

class SignalHandler {
 public:
  explicit SignalHandler(int signal, int flags = 0) : m_signal(signal) {
    g_signals = 0;
    struct sigaction action {};
    action.sa_handler = count_signal;
    action.sa_flags = flags;
    sigaction(signal, &action, &m_old);
    usleep(3'000);  // a disposition is looked at again after 2 ms (docs/decisions/signals.md)
  }
  ~SignalHandler() { sigaction(m_signal, &m_old, nullptr); }

 private:
  int m_signal;
  struct sigaction m_old {};
};

// --- Exits ---

TEST(Run, argument_other_than_0_is_einval) {
  Guest guest;
  EXPECT_EQ(call(guest.vcpu, KVM_RUN, 1ul), -EINVAL);
}

TEST(Run, hlt_without_irqchip_exits) {
  Guest guest;  // hlt
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_HLT));
  EXPECT_EQ(guest.regs().rip, Guest::kCode + 1);
}

TEST(Run, out_exits_with_port_and_data_and_goes_on) {
  Guest guest({0xba, 0xf8, 0x03, 0xb0, 0x41, 0xee, 0xf4});  // mov dx,3f8h; mov al,'A'; out dx,al; hlt
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_IO));
  EXPECT_EQ(guest.shared->io.direction, KVM_EXIT_IO_OUT);
  EXPECT_EQ(guest.shared->io.size, 1);
  EXPECT_EQ(guest.shared->io.port, 0x3f8);
  EXPECT_EQ(guest.shared->io.count, 1u);
  EXPECT_EQ(reinterpret_cast<char*>(guest.shared)[guest.shared->io.data_offset], 'A');
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_HLT));
}

TEST(Run, in_takes_the_clients_answer) {
  Guest guest({0xe5, 0x60, 0xf4});  // in ax,60h; hlt
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_IO));
  EXPECT_EQ(guest.shared->io.direction, KVM_EXIT_IO_IN);
  EXPECT_EQ(guest.shared->io.size, 2);
  auto* data = reinterpret_cast<std::uint8_t*>(guest.shared) + guest.shared->io.data_offset;
  data[0] = 0xcd;
  data[1] = 0xab;
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_HLT));
  EXPECT_EQ(guest.regs().rax & 0xffff, 0xabcdu);
}

// gokvm's serial port leaves its interrupt identification at what it finds.
TEST(Run, in_that_the_client_leaves_alone_reads_zero) {
  Guest guest({0xb8, 0x34, 0x12, 0xe7, 0x60, 0xe5, 0x60, 0xf4});  // mov ax,1234h; out 60h,ax; in ax,60h; hlt
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_IO));
  ASSERT_EQ(guest.shared->io.direction, KVM_EXIT_IO_IN);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.regs().rax & 0xffff, 0u);
}

// mov ax,0c000h; mov ds,ax; ... The guest has 64 KiB of memory, so C0000H is no slot.
TEST(Run, seed_X9_access_outside_slots_is_mmio_at_once) {
  Guest guest({0xb8, 0x00, 0xc0, 0x8e, 0xd8, 0xa1, 0x10, 0x00, 0xf4});  // mov ax,[10h]; hlt
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_MMIO));
  EXPECT_EQ(guest.shared->mmio.phys_addr, 0xc0010u);
  EXPECT_EQ(guest.shared->mmio.len, 2u);
  EXPECT_EQ(guest.shared->mmio.is_write, 0);
  guest.shared->mmio.data[0] = 0x34;
  guest.shared->mmio.data[1] = 0x12;
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_HLT));
  EXPECT_EQ(guest.regs().rax & 0xffff, 0x1234u);
}

TEST(Run, mmio_write_carries_the_data) {
  Guest guest({0xb8, 0x00, 0xc0, 0x8e, 0xd8, 0xc6, 0x06, 0x20, 0x00, 0x5a, 0xf4});  // mov byte [20h],5ah; hlt
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_MMIO));
  EXPECT_EQ(guest.shared->mmio.phys_addr, 0xc0020u);
  EXPECT_EQ(guest.shared->mmio.len, 1u);
  EXPECT_EQ(guest.shared->mmio.is_write, 1);
  EXPECT_EQ(guest.shared->mmio.data[0], 0x5a);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_HLT));
}

TEST(Run, write_to_a_read_only_slot_is_mmio) {
  Guest guest({0xb8, 0x00, 0xc0, 0x8e, 0xd8, 0xc6, 0x06, 0x20, 0x00, 0x5a, 0xa0, 0x20, 0x00, 0xf4});
  Pages rom(4096);
  rom.data()[0x20] = 0x77;
  ASSERT_EQ(guest.set_region(1, 0xc0000, 4096, rom.address(), KVM_MEM_READONLY), 0);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_MMIO));
  EXPECT_EQ(guest.shared->mmio.is_write, 1);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_HLT));
  EXPECT_EQ(guest.regs().rax & 0xff, 0x77u);
}

TEST(Run, seed_G5_slot_added_between_runs_is_seen) {
  // again: mov ax,[10h]; hlt; jmp again
  Guest guest({0xb8, 0x00, 0xc0, 0x8e, 0xd8, 0xa1, 0x10, 0x00, 0xf4, 0xeb, 0xfa});
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_MMIO));
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_HLT));
  Pages pages(4096);
  pages.data()[0x10] = 0x99;
  ASSERT_EQ(guest.set_region(1, 0xc0000, 4096, pages.address()), 0);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_HLT));
  EXPECT_EQ(guest.regs().rax & 0xffff, 0x99u);
}

TEST(Run, seed_G5_deleted_slot_becomes_mmio) {
  Guest guest({0xb8, 0x00, 0xc0, 0x8e, 0xd8, 0xa1, 0x10, 0x00, 0xf4, 0xeb, 0xfa});
  Pages pages(4096);
  ASSERT_EQ(guest.set_region(1, 0xc0000, 4096, pages.address()), 0);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_HLT));
  ASSERT_EQ(guest.set_region(1, 0xc0000, 0, 0), 0);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_MMIO));
}

TEST(Run, triple_fault_is_a_shutdown) {
  Guest guest({0x0f, 0x01, 0x1e, 0x00, 0x20, 0xcc});  // lidt [2000h] (limit 0); int3
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_SHUTDOWN));
}

// --- immediate_exit and signals ---

TEST(Run, immediate_exit_is_eintr_and_runs_nothing) {
  Guest guest;
  guest.shared->immediate_exit = 1;
  EXPECT_EQ(guest.run(), -EINTR);
  EXPECT_EQ(guest.regs().rip, Guest::kCode);
  guest.shared->immediate_exit = 0;
  EXPECT_EQ(guest.run(), 0);
}

// A reset behind a write to a device looks like this.
TEST(Run, cpu_that_the_client_moves_on_behind_an_exit_can_be_kicked) {
  Guest guest({0xe6, 0x10,    // out 10H, al
               0xeb, 0xfe});  // 1002H: jmp to itself
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_IO));
  kvm_regs regs = guest.regs();
  regs.rip = Guest::kCode + 2;
  guest.set_regs(regs);
  SignalHandler handler(SIGUSR1);
  std::atomic<bool> returned{false};
  Later kicker([&returned, &guest, self = pthread_self()] {
    pthread_kill(self, SIGUSR1);
    for (int i = 0; i < 500 && !returned; ++i) usleep(10'000);
    guest.memory.data()[Guest::kCode + 2] = 0xf4;  // so that a lost kick does not hang the test
  });
  EXPECT_EQ(guest.run(), -EINTR);
  returned = true;
}

TEST(Run, immediate_exit_completes_a_pending_port_read) {
  Guest guest({0xe4, 0x60, 0xf4});  // in al,60h; hlt
  ASSERT_EQ(guest.run(), 0);
  reinterpret_cast<std::uint8_t*>(guest.shared)[guest.shared->io.data_offset] = 0x42;
  guest.shared->immediate_exit = 1;
  EXPECT_EQ(guest.run(), -EINTR);
  EXPECT_EQ(guest.regs().rax & 0xff, 0x42u);
  EXPECT_EQ(guest.regs().rip, Guest::kCode + 2);
}

TEST(Run, immediate_exit_leaves_the_exit_that_it_completes_to_be_read) {
  Guest guest({0xe4, 0x60, 0xf4});  // in al,60h; hlt
  ASSERT_EQ(guest.run(), 0);
  guest.shared->immediate_exit = 1;
  EXPECT_EQ(guest.run(), -EINTR);
  EXPECT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_IO));
}

TEST(Run, signal_ends_a_spinning_guest) {
  Guest guest({0xeb, 0xfe});  // jmp $
  SignalHandler handler(SIGUSR1);
  Later kick([self = pthread_self()] { pthread_kill(self, SIGUSR1); });
  EXPECT_EQ(guest.run(), -EINTR);
  EXPECT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_INTR));
  EXPECT_EQ(g_signals, 1);
}

TEST(Run, signal_with_sa_restart_ends_the_run_too) {
  Guest guest({0xeb, 0xfe});
  SignalHandler handler(SIGUSR1, SA_RESTART);
  Later kick([self = pthread_self()] { pthread_kill(self, SIGUSR1); });
  EXPECT_EQ(guest.run(), -EINTR);
}

TEST(Run, signal_ends_a_halted_guest) {
  Guest guest({0xf4}, Guest::Chips::kIrqchip);
  SignalHandler handler(SIGUSR1, SA_RESTART);
  Later kick([self = pthread_self()] { pthread_kill(self, SIGUSR1); });
  EXPECT_EQ(guest.run(), -EINTR);
  EXPECT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_INTR));
}

TEST(Run, process_timer_signal_ends_the_run) {
  Guest guest({0xeb, 0xfe});
  SignalHandler handler(SIGALRM);
  ualarm(20'000, 0);
  EXPECT_EQ(guest.run(), -EINTR);
}

TEST(Run, signal_open_only_in_the_run_ends_it_and_stays_pending) {
  Guest guest({0xeb, 0xfe});
  SignalHandler handler(SIGUSR1);
  sigset_t blocked, pending;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGUSR1);
  pthread_sigmask(SIG_BLOCK, &blocked, nullptr);
  struct {
    std::uint32_t length = 8;
    std::uint8_t set[8]{};
  } mask;
  ASSERT_EQ(call(guest.vcpu, KVM_SET_SIGNAL_MASK, &mask), 0);
  Later kick([self = pthread_self()] { pthread_kill(self, SIGUSR1); });
  EXPECT_EQ(guest.run(), -EINTR);
  sigpending(&pending);
  EXPECT_EQ(sigismember(&pending, SIGUSR1), 1);
  timespec now{};
  sigtimedwait(&blocked, nullptr, &now);
  pthread_sigmask(SIG_UNBLOCK, &blocked, nullptr);
}

TEST(Run, ignored_signal_does_not_end_the_run) {
  Guest guest({0xeb, 0xfe});
  SignalHandler handler(SIGUSR2);
  signal(SIGUSR1, SIG_IGN);
  Later kick([self = pthread_self()] {
    pthread_kill(self, SIGUSR1);
    usleep(10'000);
    pthread_kill(self, SIGUSR2);
  });
  EXPECT_EQ(guest.run(), -EINTR);
  EXPECT_EQ(g_signals, 1);
  signal(SIGUSR1, SIG_DFL);
}

// --- Halting (SEEDS G1) ---

TEST(Run, seed_G1_halted_vcpu_costs_no_cpu_time) {
  Guest guest({0xf4}, Guest::Chips::kIrqchip);
  SignalHandler handler(SIGUSR1);
  rusage before{}, after{};
  Later kick([self = pthread_self()] {
    usleep(30'000);
    pthread_kill(self, SIGUSR1);
  });
  getrusage(RUSAGE_THREAD, &before);
  EXPECT_EQ(guest.run(), -EINTR);
  getrusage(RUSAGE_THREAD, &after);
  EXPECT_EQ(after.ru_utime.tv_sec, before.ru_utime.tv_sec);
  EXPECT_LT(after.ru_utime.tv_usec - before.ru_utime.tv_usec, 15'000);
}

TEST(Run, seed_G1_nmi_wakes_a_halted_vcpu) {
  Guest guest({0xf4}, Guest::Chips::kIrqchip);
  guest.memory.data()[2 * 4 + 1] = 0x30;  // vector 2: 0000:3000
  guest.memory.data()[0x3000] = 0xe6;     // out 10h,al
  guest.memory.data()[0x3001] = 0x10;
  ASSERT_EQ(call(guest.vcpu, KVM_NMI), 0);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_IO));
  EXPECT_EQ(guest.shared->io.port, 0x10);
}

TEST(Run, seed_G1_irq_line_wakes_a_halted_vcpu) {
  // sti; hlt; jmp -2: the handler of IRQ 0 (vector 8 after reset of the PIC's base below) writes port 10h
  Guest guest({0xfb, 0xf4, 0xeb, 0xfd}, Guest::Chips::kIrqchip);
  guest.memory.data()[0x20 * 4 + 1] = 0x30;
  guest.memory.data()[0x3000] = 0xe6;
  guest.memory.data()[0x3001] = 0x10;
  kvm_irqchip chip{};
  ASSERT_EQ(call(guest.vm, KVM_GET_IRQCHIP, &chip), 0);
  chip.chip.pic.irq_base = 0x20;
  chip.chip.pic.imr = 0;
  ASSERT_EQ(call(guest.vm, KVM_SET_IRQCHIP, &chip), 0);
  kvm_lapic_state lapic{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_LAPIC, &lapic), 0);
  const std::uint32_t extint = 0x700;  // LINT0 passes the PIC on
  memcpy(lapic.regs + 0x350, &extint, sizeof extint);
  ASSERT_EQ(call(guest.vcpu, KVM_SET_LAPIC, &lapic), 0);
  Later raise([vm = static_cast<int>(guest.vm)] {
    kvm_irq_level level{};
    level.level = 1;
    call(vm, KVM_IRQ_LINE, &level);
  });
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_IO));
  EXPECT_EQ(guest.shared->io.port, 0x10);
}

// --- A timer that passes while the client has the CPU ---

constexpr unsigned kMsrTsc = 0x10, kMsrTscDeadline = 0x6e0, kTimerVector = 0xec;

// Halts; the handler of its timer, which runs by TSC deadlines, writes port 10H.
struct TimerGuest : Guest {
  TimerGuest() : Guest({0xfb, 0xf4, 0xeb, 0xfd}, Chips::kIrqchip) {  // sti; hlt; jmp -3
    auto cpuid = supported_cpuid();
    for (auto& entry : cpuid.entries)
      if (entry.function == 1) entry.ecx |= 1u << 24;  // the client's to say (KVM_CAP_TSC_DEADLINE_TIMER)
    EXPECT_EQ(call(vcpu, KVM_SET_CPUID2, &cpuid), 0);
    set_handler(kTimerVector, 0x3000, {0xe6, 0x10});  // out 10H, al
  }
  void use_deadlines() {
    set_lapic(0xf0, 0x1ff);  // APIC on
    set_lapic(0x320, 0x40000 | kTimerVector);
  }
  void set_deadline_soon() {  // some milliseconds at most on any host
    ASSERT_EQ(set_msr(kMsrTscDeadline, msr(kMsrTsc) + 1'000'000), 1);
  }
};

// As a snapshot does it: MP state and registers first, then the local APIC and the MSRs.
void restore(Guest& copy, const Guest& from, kvm_lapic_state lapic, std::uint64_t deadline) {
  kvm_mp_state mp{};
  kvm_sregs sregs{};
  kvm_regs regs{};
  ASSERT_EQ(call(from.vcpu, KVM_GET_MP_STATE, &mp), 0);
  ASSERT_EQ(call(from.vcpu, KVM_GET_REGS, &regs), 0);
  ASSERT_EQ(call(from.vcpu, KVM_GET_SREGS, &sregs), 0);
  ASSERT_EQ(call(copy.vcpu, KVM_SET_MP_STATE, &mp), 0);
  ASSERT_EQ(call(copy.vcpu, KVM_SET_REGS, &regs), 0);
  ASSERT_EQ(call(copy.vcpu, KVM_SET_SREGS, &sregs), 0);
  ASSERT_EQ(copy.set_msr(kMsrTsc, from.msr(kMsrTsc)), 1);
  ASSERT_EQ(call(copy.vcpu, KVM_SET_LAPIC, &lapic), 0);
  ASSERT_EQ(copy.set_msr(kMsrTscDeadline, deadline), 1);
}

void expect_timer(Guest& guest) {
  ASSERT_EQ(guest.run_until_kicked(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_IO));
  EXPECT_EQ(guest.shared->io.port, 0x10);
}

TEST(Run, deadline_that_passes_while_stopped_comes_in_a_copy) {
  TimerGuest source, copy;
  source.use_deadlines();
  EXPECT_EQ(source.run_until_kicked(), -EINTR);
  source.set_deadline_soon();
  usleep(20'000);
  kvm_lapic_state lapic{};
  ASSERT_EQ(call(source.vcpu, KVM_GET_LAPIC, &lapic), 0);
  restore(copy, source, lapic, source.msr(kMsrTscDeadline));
  expect_timer(copy);
}

// The client reads the local APIC first, then the deadline, which has just passed.
TEST(Run, deadline_that_passes_between_two_calls_comes_in_a_copy) {
  TimerGuest source, copy;
  source.use_deadlines();
  EXPECT_EQ(source.run_until_kicked(), -EINTR);
  source.set_deadline_soon();
  kvm_lapic_state lapic{};
  ASSERT_EQ(call(source.vcpu, KVM_GET_LAPIC, &lapic), 0);
  lapic.regs[0x200 + kTimerVector / 32 * 0x10 + kTimerVector % 32 / 8] = 0;  // should it have been late
  usleep(20'000);
  restore(copy, source, lapic, source.msr(kMsrTscDeadline));
  expect_timer(copy);
}

TEST(Run, deadline_that_came_is_over) {
  TimerGuest guest;
  guest.use_deadlines();
  guest.set_deadline_soon();
  expect_timer(guest);
  EXPECT_EQ(guest.msr(kMsrTscDeadline), 0u);
}

// --- Interrupts by the client ---

TEST(Run, injected_interrupt_is_delivered) {
  Guest guest({0xfb, 0x90, 0xeb, 0xfe});  // sti; nop; jmp $
  guest.memory.data()[0x21 * 4 + 1] = 0x30;
  guest.memory.data()[0x3000] = 0xf4;
  kvm_regs regs = guest.regs();
  regs.rflags |= 0x200;
  guest.set_regs(regs);
  kvm_interrupt interrupt{0x21};
  ASSERT_EQ(call(guest.vcpu, KVM_INTERRUPT, &interrupt), 0);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_HLT));
  EXPECT_EQ(guest.regs().rip, 0x3001u);
}

TEST(Run, interrupt_window_opens_after_sti) {
  Guest guest({0x90, 0xfb, 0x90, 0x90, 0xeb, 0xfe});  // nop; sti; nop; nop; jmp $
  guest.shared->request_interrupt_window = 1;
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_IRQ_WINDOW_OPEN));
  EXPECT_EQ(guest.shared->if_flag, 1);
  EXPECT_EQ(guest.shared->ready_for_interrupt_injection, 1);
}

// --- eventfds and rings (SEEDS G2) ---

TEST(Run, seed_G2_write_to_an_ioeventfd_does_not_exit) {
  Guest guest({0xb0, 0x07, 0xe6, 0x44, 0xf4});  // mov al,7; out 44h,al; hlt
  Handle event(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  kvm_ioeventfd request{};
  request.addr = 0x44;
  request.len = 1;
  request.datamatch = 7;
  request.flags = KVM_IOEVENTFD_FLAG_PIO | KVM_IOEVENTFD_FLAG_DATAMATCH;
  request.fd = event;
  ASSERT_EQ(call(guest.vm, KVM_IOEVENTFD, &request), 0);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_HLT));
  eventfd_t count = 0;
  ASSERT_EQ(eventfd_read(event, &count), 0);
  EXPECT_EQ(count, 1u);
}

TEST(Run, seed_G2_mmio_ioeventfd_of_length_0_takes_any_size) {
  Guest guest({0xb8, 0x00, 0xc0, 0x8e, 0xd8, 0xa3, 0x10, 0x00, 0xa2, 0x10, 0x00, 0xf4});
  Handle event(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  kvm_ioeventfd request{};
  request.addr = 0xc0010;
  request.fd = event;
  ASSERT_EQ(call(guest.vm, KVM_IOEVENTFD, &request), 0);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_HLT));
  eventfd_t count = 0;
  ASSERT_EQ(eventfd_read(event, &count), 0);
  EXPECT_EQ(count, 2u);
}

// mov ax,C000h; mov ds,ax; mov byte [20h],5Ah; hlt
constexpr std::initializer_list<std::uint8_t> kWriteToTheZone = {0xb8, 0x00, 0xc0, 0x8e, 0xd8, 0xc6,
                                                                 0x06, 0x20, 0x00, 0x5a, 0xf4};

kvm_coalesced_mmio_zone page_at_c0000() {
  kvm_coalesced_mmio_zone zone{};
  zone.addr = 0xc0000;
  zone.size = 0x1000;
  return zone;
}

// mov ax,2000h; mov ds,ax; fninit; fldpi; fld1; fstp dword [0]; fstp dword es:[5000h]; hlt
TEST(Run, x87_store_to_the_client_pops_once) {
  if (on_real_kvm()) GTEST_SKIP() << "its emulator has no x87 instructions";
  Guest guest({0xb8, 0x00, 0x20, 0x8e, 0xd8, 0xdb, 0xe3, 0xd9, 0xeb, 0xd9, 0xe8,
               0xd9, 0x1e, 0x00, 0x00, 0x26, 0xd9, 0x1e, 0x00, 0x50, 0xf4});
  ASSERT_EQ(guest.run(), 0);
  // What is there is read first: a store that raises an exception writes nothing.
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_MMIO));
  EXPECT_EQ(guest.shared->mmio.is_write, 0);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_MMIO));
  EXPECT_EQ(guest.shared->mmio.is_write, 1);
  float stored = 0;
  std::memcpy(&stored, guest.shared->mmio.data, sizeof stored);
  EXPECT_EQ(stored, 1.0f);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_HLT));
  std::memcpy(&stored, guest.memory.data() + 0x5000, sizeof stored);
  EXPECT_EQ(stored, 3.14159274f);
}

TEST(Run, coalesced_write_lands_in_the_ring) {
  Guest guest(kWriteToTheZone);
  kvm_coalesced_mmio_zone zone = page_at_c0000();
  ASSERT_EQ(call(guest.vm, KVM_REGISTER_COALESCED_MMIO, &zone), 0);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_HLT));
  long page = call(guest.fd, KVM_CHECK_EXTENSION, static_cast<unsigned long>(KVM_CAP_COALESCED_MMIO));
  auto* ring =
      reinterpret_cast<kvm_coalesced_mmio_ring*>(reinterpret_cast<char*>(guest.shared) + page * 4096);
  ASSERT_EQ(ring->last - ring->first, 1u);
  EXPECT_EQ(ring->coalesced_mmio[ring->first].phys_addr, 0xc0020u);
  EXPECT_EQ(ring->coalesced_mmio[ring->first].data[0], 0x5a);
}

TEST(Run, write_to_a_zone_that_is_no_longer_coalesced_exits) {
  Guest guest(kWriteToTheZone);
  kvm_coalesced_mmio_zone zone = page_at_c0000();
  ASSERT_EQ(call(guest.vm, KVM_REGISTER_COALESCED_MMIO, &zone), 0);
  ASSERT_EQ(call(guest.vm, KVM_UNREGISTER_COALESCED_MMIO, &zone), 0);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_MMIO));
}

TEST(Run, coalesced_ring_is_the_same_for_every_vcpu) {
  Guest guest;
  Handle second(call(guest.vm, KVM_CREATE_VCPU, 1ul));
  auto* other = static_cast<std::uint8_t*>(kvm_mmap(guest.shared_size, second));
  auto* first = reinterpret_cast<std::uint8_t*>(guest.shared);
  first[2 * 4096 + 100] = 0x5a;
  EXPECT_EQ(other[2 * 4096 + 100], 0x5a);
  first[4096] = 0x11;
  other[4096] = 0x22;
  EXPECT_EQ(first[4096], 0x11);
  munmap(other, guest.shared_size);
}

// --- Dirty log ---

TEST(DirtyLog, written_pages_are_reported_once_and_again_when_written_again) {
  // again: inc byte [5000h]; hlt; jmp again
  Guest guest({0xfe, 0x06, 0x00, 0x50, 0xf4, 0xeb, 0xf9});
  ASSERT_EQ(guest.set_region(0, 0, guest.memory.size(), guest.memory.address(), KVM_MEM_LOG_DIRTY_PAGES), 0);
  std::uint64_t bitmap = 0;
  kvm_dirty_log log{};
  log.dirty_bitmap = &bitmap;
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(call(guest.vm, KVM_GET_DIRTY_LOG, &log), 0);
  EXPECT_EQ(bitmap, 1u << 5);
  ASSERT_EQ(call(guest.vm, KVM_GET_DIRTY_LOG, &log), 0);
  EXPECT_EQ(bitmap, 0u);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(call(guest.vm, KVM_GET_DIRTY_LOG, &log), 0);
  EXPECT_EQ(bitmap, 1u << 5);
}

TEST(DirtyLog, bad_bitmap_pointer_is_efault) {
  Guest guest;
  ASSERT_EQ(guest.set_region(0, 0, guest.memory.size(), guest.memory.address(), KVM_MEM_LOG_DIRTY_PAGES), 0);
  kvm_dirty_log log{};
  log.dirty_bitmap = kBadPointer;
  EXPECT_EQ(call(guest.vm, KVM_GET_DIRTY_LOG, &log), -EFAULT);
}

// --- INIT and SIPI ---

TEST(Run, second_cpu_starts_by_init_and_sipi) {
  // Boot CPU, in protected mode too far for real mode to reach FEE00000H: the test sends the messages as MSIs
  // would not do; KVM_SET_MP_STATE does.
  Guest guest({0xf4}, Guest::Chips::kIrqchip);
  Handle second(call(guest.vm, KVM_CREATE_VCPU, 1ul));
  auto* shared = static_cast<kvm_run*>(kvm_mmap(guest.shared_size, second));
  guest.memory.data()[0x4000] = 0xe6;  // out 10h,al
  guest.memory.data()[0x4001] = 0x10;
  kvm_vcpu_events events{};
  ASSERT_EQ(call(second, KVM_GET_VCPU_EVENTS, &events), 0);
  events.sipi_vector = 4;
  events.flags = KVM_VCPUEVENT_VALID_SIPI_VECTOR;
  ASSERT_EQ(call(second, KVM_SET_VCPU_EVENTS, &events), 0);
  kvm_mp_state state{KVM_MP_STATE_SIPI_RECEIVED};
  ASSERT_EQ(call(second, KVM_SET_MP_STATE, &state), 0);
  ASSERT_EQ(call(second, KVM_RUN), 0);
  EXPECT_EQ(shared->exit_reason, static_cast<unsigned>(KVM_EXIT_IO));
  EXPECT_EQ(shared->io.port, 0x10);
  munmap(shared, guest.shared_size);
}

TEST(Run, uninitialized_cpu_waits_until_a_signal) {
  Guest guest({0xf4}, Guest::Chips::kIrqchip);
  Handle second(call(guest.vm, KVM_CREATE_VCPU, 1ul));
  SignalHandler handler(SIGUSR1);
  Later kick([self = pthread_self()] { pthread_kill(self, SIGUSR1); });
  EXPECT_EQ(call(second, KVM_RUN), -EINTR);
}

// --- Asynchronous cancellation ---

void* run_until_cancelled(void* argument) {
  pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, nullptr);
  for (;;) static_cast<Guest*>(argument)->run();
}

void cancel_a_runner(Guest& guest) {
  pthread_t thread;
  ASSERT_EQ(pthread_create(&thread, nullptr, run_until_cancelled, &guest), 0);
  usleep(20'000);
  ASSERT_EQ(pthread_cancel(thread), 0);
  void* result = nullptr;
  ASSERT_EQ(pthread_join(thread, &result), 0);
  EXPECT_EQ(result, PTHREAD_CANCELED);
}

TEST(Cancel, runner_in_guest_code_is_cancelled_and_the_vcpu_is_usable) {
  Guest guest({0xeb, 0xfe});  // jmp $
  cancel_a_runner(guest);
  EXPECT_EQ(guest.regs().rip, Guest::kCode);
  cancel_a_runner(guest);
}

TEST(Cancel, halted_runner_is_cancelled_and_the_vcpu_is_usable) {
  Guest guest({0xf4}, Guest::Chips::kIrqchip);
  cancel_a_runner(guest);
  cancel_a_runner(guest);
}

// --- Synced registers ---

TEST(SyncRegs, valid_fields_are_stored_and_dirty_ones_loaded) {
  Guest guest({0x40, 0xf4});  // inc ax; hlt
  guest.shared->kvm_valid_regs = KVM_SYNC_X86_REGS;
  guest.shared->s.regs.regs = guest.regs();
  guest.shared->s.regs.regs.rax = 41;
  guest.shared->kvm_dirty_regs = KVM_SYNC_X86_REGS;
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->s.regs.regs.rax, 42u);
}

TEST(SyncRegs, unknown_fields_are_einval) {
  Guest guest;
  guest.shared->kvm_valid_regs = 1ull << 40;
  EXPECT_EQ(guest.run(), -EINVAL);
}

}  // namespace
}  // namespace anykvm::test
